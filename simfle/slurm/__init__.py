"""Submit, requeue and follow Slurm jobs."""
