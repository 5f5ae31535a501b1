"""Evaluate backbones on benchmarks."""
