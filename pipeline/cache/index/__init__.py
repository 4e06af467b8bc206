"""Which shard and row hold the scores of a sequence."""
