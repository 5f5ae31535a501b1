"""All fuzzed readers."""

from fuzz import corpus_readers, list_readers, run_readers, shard_readers
from fuzz import run_file_readers as told_readers

READERS = (
    *shard_readers.READERS,
    *list_readers.READERS,
    *corpus_readers.READERS,
    *run_readers.READERS,
    *told_readers.READERS,
)
