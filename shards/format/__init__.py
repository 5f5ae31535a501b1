"""The format of shards: manifest, indexes, samples, tars."""
