"""Tables as the bytes of Parquet shards, and back verified."""
