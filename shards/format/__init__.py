"""Shard format: manifest, indexes, samples, tars."""
