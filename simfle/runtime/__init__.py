"""Processes, devices, signals, logs and the files of a run."""
