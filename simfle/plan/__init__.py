"""Predict resources and speed of a run: a documented model, its constants, and counts from the real network."""
