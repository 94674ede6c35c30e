"""Models in use: opening one wherever it lies, asking it, scoring it on a folder."""
