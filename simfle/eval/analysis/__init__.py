"""Results, metrics, comparisons and summaries."""
