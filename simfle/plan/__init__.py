"""What a run will need and how fast it will be: a stated model, its constants, and what the real network counts."""
