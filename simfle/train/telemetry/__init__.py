"""Metrics, progress, profiles and probes of a run."""
