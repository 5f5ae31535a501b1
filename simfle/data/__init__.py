"""Samples in order, their views, and the loader."""
