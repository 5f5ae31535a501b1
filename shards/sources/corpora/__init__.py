"""The public corpora that are known by name."""
