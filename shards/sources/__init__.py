"""Where faces come from: folders, lists, archives, corpora, drawings."""
