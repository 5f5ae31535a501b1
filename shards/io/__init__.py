"""Files, URLs, JSON lines and worker processes."""
