"""Read finished shards: by key, as a torch dataset, from a cache."""
