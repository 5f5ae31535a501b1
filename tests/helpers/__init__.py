"""What several tests use: corpora, servers, commands, small models."""
