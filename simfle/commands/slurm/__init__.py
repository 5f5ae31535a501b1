"""Commands of `simfle slurm`."""
