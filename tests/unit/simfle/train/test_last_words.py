"""A hanging process exits although no process reads its last message."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HANG = """
import sys, time, pathlib
from simfle.train.watchdog import Watchdog
with Watchdog(pathlib.Path(sys.argv[1]), 0, 1, 0.5):
    if sys.argv[2:]:
        while True:
            sys.stderr.write("x" * 4096)
    time.sleep(600)
"""


def test_a_pipe_that_nobody_reads_does_not_keep_a_hanging_process(tmp_path: Path) -> None:
    """`simfle pretrain | less` that is left alone: the process waits for room in the pipe; the watchdog must not."""
    ends = os.pipe()
    try:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        words = [sys.executable, "-c", HANG, str(tmp_path), "fill"]
        with subprocess.Popen(words, stderr=ends[1]) as process:
            assert process.wait(120) == 76
    finally:
        for end in ends:
            os.close(end)


def test_last_words_name_the_reason_and_where_the_threads_are(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANG, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 76
    assert done.stderr.startswith("error: no progress for ")
    assert 'File "<string>", line 8 in <module>' in done.stderr
