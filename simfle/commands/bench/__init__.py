"""Commands of `simfle bench`."""
