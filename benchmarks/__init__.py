"""Measurements: `python -m benchmarks.NAME`. No test asserts a time; these print them."""
