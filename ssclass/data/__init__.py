"""Photos: batches in S3, checks, the split, shards, data versions, and everything that is asked of them later."""
