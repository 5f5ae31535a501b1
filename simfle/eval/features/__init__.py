"""Compute and cache features."""
