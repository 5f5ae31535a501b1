"""Synthetic faces, for tests and the quickstart."""
