"""HTML report about runs."""
