"""Where shards are stored: local, remote, resampled."""
