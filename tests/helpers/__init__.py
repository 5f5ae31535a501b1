"""Helpers that several tests use: corpora, servers, commands, small models."""
