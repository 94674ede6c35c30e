"""Heads: what is trained on the features of the frozen network."""
