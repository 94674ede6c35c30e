"""What the tests share: running commands, model fixtures, guarded S3, odd files."""
