"""The commands of `simfle slurm`."""
