"""Commands of `simfle shards`."""
