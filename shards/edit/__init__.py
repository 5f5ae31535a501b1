"""Check, summarize and change finished shards."""
