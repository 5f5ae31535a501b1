"""The commands of `simfle shards`."""
