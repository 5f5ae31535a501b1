"""Benchmarks: several variants of the same work, in turn, in one process."""
