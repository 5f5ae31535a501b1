"""Benchmarks, splits, folds and targets."""
