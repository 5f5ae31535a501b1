"""Decode, align, crop and encode faces."""
