"""Storage of shards: local, remote, resampled."""
