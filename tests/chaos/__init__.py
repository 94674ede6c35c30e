"""What `make chaos` runs: kills and stops around every durable step, partners that fail, two clones at random."""
