"""Training loop, checkpoints, locks, watchdog and telemetry."""
