"""Few open files allowed (ulimit -n): the limit is raised, respected, and named; no image is lost for it."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.data_fixtures import jpeg, picture, write_shards
from helpers.source_kit import photo, write

from shards.build.failures import describe_failure
from shards.io.atomic import read_text_if_exists
from shards.io.open_files import describe_limit, raise_limit
from shards.io.unicode_paths import find_spelling
from shards.sources.containers.corpus_archive import digest_of

READ_ALL = """
import sys
from simfle.data.dataset import ShardCorpus
corpus = ShardCorpus([sys.argv[1]])
for shard in range(len(corpus.shards)):
    corpus.read_image(shard, 0)
print(len(corpus.shards))
"""


@contextmanager
def no_file_left() -> Iterator[None]:
    """Let every open() of this process fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def limited(files: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a process with a limit of open files that it cannot raise."""
    shell = ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash"]
    return subprocess.run([*shell, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def test_the_limit_is_raised_as_far_as_permitted() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        assert raise_limit(10) == 128
        assert raise_limit(200) == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 264
        assert hard == resource.RLIM_INFINITY or raise_limit(2 * hard) == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_shards_than_open_files(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "many", [("train", [jpeg(picture(0, 8, 8))])] * 60)
    done = limited(48, sys.executable, "-c", READ_ALL, shards)
    assert (done.stdout, done.stderr) == ("60\n", "")


def test_more_processes_than_open_files_are_one_line(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "many", [("train", [jpeg(picture(0, 8, 8))])] * 12)
    done = limited(24, sys.executable, "-m", "simfle", "shards", "verify", shards, "--workers", 12)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1:] == [
        "error: too many open files: the limit is 24, at most 24. Fix: run ulimit -n 4096, or use fewer processes "
        "(--workers), then rerun the command."
    ]
    assert "Traceback" not in done.stderr


def test_no_image_is_missing_because_a_file_cannot_be_opened(tmp_path: Path) -> None:
    file = write(tmp_path / "Jose\u0301.jpg", photo(1))
    other = tmp_path / "Jos\u00e9.jpg"
    for read in (find_spelling, digest_of, read_text_if_exists):
        with no_file_left(), pytest.raises(OSError, match="Too many open files"):
            read(file if read is not find_spelling else other)
    assert find_spelling(other) == file
    assert digest_of(tmp_path / "none") == b""
    assert read_text_if_exists(tmp_path / "none") is None


def test_failures_of_a_build_name_the_limit() -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert describe_failure(error, Path("out.partial")) == describe_limit()
