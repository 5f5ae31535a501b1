"""Shards: face corpora as verified, deterministic WebDataset tars with an index and a manifest."""
