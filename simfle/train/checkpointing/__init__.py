"""Write, verify and resume checkpoints."""
