"""Drawn faces, for tests and the quickstart."""
