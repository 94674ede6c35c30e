"""Heads: the small classifiers that are fitted to the features of the frozen network."""
