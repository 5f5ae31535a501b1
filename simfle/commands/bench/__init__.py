"""The commands of `simfle bench`."""
