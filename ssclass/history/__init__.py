"""What happened: the story of a batch, where a photo went, the data of a version as files."""
