"""Readers of container formats: tar, zip, MATLAB, Parquet."""
