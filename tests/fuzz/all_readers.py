"""Every reader that is fuzzed."""

from fuzz import run_readers, shard_readers

READERS = (*shard_readers.READERS, *run_readers.READERS)
