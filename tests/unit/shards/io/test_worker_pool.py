"""Work on several processes: order, words on the way, errors, and that nothing stays behind."""

import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.io.worker_pool import parallel_map, report_progress

pytestmark = pytest.mark.slow


def children() -> list[str]:
    """Workers that are left; this process may have other children, of tests before."""
    own = [word for task in Path("/proc/self/task").iterdir() for word in (task / "children").read_text().split()]
    return [pid for pid in own if "shards.io.worker_pool" in Path(f"/proc/{pid}/cmdline").read_text()]


def slow_first(item: int) -> tuple[int, int]:
    time.sleep(0.5 if item == 0 else 0)
    report_progress(item)
    return item * item, os.getpid()


def until_stopped(folder: Path, item: int) -> int:
    if item == 0:
        return 0
    (folder / "at-work").touch()
    try:
        while True:
            time.sleep(0.01)
            report_progress(item)
    except UserError:
        (folder / "left").touch()
        raise


def refuse(item: int) -> int:
    if item == 3:
        raise UserError("three is too many")
    return item


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_answers_are_in_order_and_words_come_on_the_way(processes: int) -> None:
    told: list[int] = []
    answers = list(parallel_map(slow_first, range(8), processes, told.append))
    assert [value for value, _ in answers] == [n * n for n in range(8)]
    pids = {pid for _, pid in answers}
    assert len(pids) <= processes
    assert (os.getpid() in pids) == (processes == 1)
    assert sorted(told) == list(range(8))
    assert not children()


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_for_users_arrive_as_they_are(processes: int) -> None:
    with pytest.raises(UserError, match=r"^three is too many$"):
        list(parallel_map(refuse, range(6), processes))
    assert not children()


def test_a_bug_comes_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*ValueError: (expected|math domain)"):
        list(parallel_map(math.sqrt, [4.0, -1.0, 9.0], 2))


def test_a_death_is_told() -> None:
    with pytest.raises(UserError, match="a worker process died"):
        list(parallel_map(os._exit, [3, 3], 2))
    assert not children()


def test_who_is_no_longer_heard_stops_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker closes its open files: the parent exits, and `tell` raises in the worker."""
    monkeypatch.setattr("shards.io.worker_pool.EXIT_TIMEOUT", 60.0)
    answers = parallel_map(partial(until_stopped, tmp_path), range(2), 2)
    assert next(answers) == 0
    end = time.monotonic() + 120
    while not (tmp_path / "at-work").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    answers.close()
    assert (tmp_path / "left").exists()
    assert not children()


def test_a_plain_script_needs_no_guard(tmp_path: Path) -> None:
    """Python's own pools run it again in each process, unless all of it stands below `if __name__ == "__main__"`."""
    script = tmp_path / "mine.py"
    script.write_text(
        "import math\nfrom shards.io.worker_pool import parallel_map\nprint(list(parallel_map(math.isqrt, [4, "
        "9, 16], 2)))\n"
    )
    (tmp_path / "multiprocessing.py").write_text("raise SystemExit('a file of the user, not the module')")
    words = [sys.executable, "-P", script] if sys.version_info >= (3, 11) else [sys.executable, "-I", script]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[2, 3, 4]\n", "")
