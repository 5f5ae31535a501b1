"""Heads, masking and other building blocks."""
