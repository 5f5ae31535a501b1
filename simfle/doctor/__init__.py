"""What a machine, or a cluster, has and lacks, and what to do about it."""
