"""Build shards from the entries of a source."""
