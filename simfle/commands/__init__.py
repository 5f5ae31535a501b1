"""Command line of simfle, one module for each command."""
