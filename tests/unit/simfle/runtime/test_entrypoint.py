"""A process that ends at once ends as any other: exit code, last words, threads, atexit; loading leaves no trace."""

import gc
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from simfle.runtime.entrypoint import gc_frozen_imports

ROOT = Path(__file__).parents[4]
ENDS = {
    "pass": 0,
    "sys.exit()": 0,
    "sys.exit(7)": 7,
    "sys.exit('a reason')": 1,
    "raise ValueError('a bug')": 1,
    "print('x', end=''); sys.stdout = open('/dev/full', 'w'); print('lost')": 120,
}
PROGRAM = """
import atexit, sys, threading, time
from simfle.runtime.entrypoint import run_as_main

def main():
    print("to a pipe, so not flushed by itself", end="")
    atexit.register(lambda: sys.stderr.write("atexit "))
    threading.Thread(target=lambda: (time.sleep(0.05), sys.stderr.write("thread "))).start()
    {what}

class Unending:
    def __del__(self):
        sys.stderr.write("taken to pieces")

kept = Unending()
run_as_main(main)
"""


@pytest.mark.parametrize(("what", "code"), ENDS.items(), ids=ENDS)
def test_ends_as_any_process_but_takes_nothing_to_pieces(what: str, code: int) -> None:
    program = PROGRAM.format(what=what)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith("to a pipe")
    assert done.stderr.endswith("thread atexit "), done.stderr
    assert ("a reason" in done.stderr, "ValueError: a bug" in done.stderr) == ("reason" in what, "bug" in what)


def test_loading_leaves_the_collector_as_it_was() -> None:
    before = gc.get_freeze_count()
    try:
        for running in (True, False):
            (gc.enable if running else gc.disable)()
            with suppress(ImportError), gc_frozen_imports():
                assert not gc.isenabled()
                raise ImportError
            assert gc.isenabled() is running
        assert gc.get_freeze_count() > before
    finally:
        gc.enable()
