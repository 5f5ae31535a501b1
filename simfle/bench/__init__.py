"""Benchmarks: several variants of the same work, alternating in one process."""
