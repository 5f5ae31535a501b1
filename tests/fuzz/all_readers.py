"""Every reader that is fuzzed."""

from fuzz import list_readers, run_readers, shard_readers

READERS = (*shard_readers.READERS, *list_readers.READERS, *run_readers.READERS)
