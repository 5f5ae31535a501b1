"""Builds that are killed, interrupted, started twice or out of disk: real processes, the same bytes in the end."""

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from helpers.corpus_fixtures import BUILD, contents, encoded, picture, run, samples, write_faces

from shards.format.manifest import read_manifest

pytestmark = pytest.mark.slow

T = TypeVar("T")


def start(*command: object) -> "subprocess.Popen[bytes]":
    words = [str(word) for word in command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(done: Callable[[], T], process: "subprocess.Popen[bytes]", seconds: float = 120) -> T:
    """Return the first true result of `done`, which might be false in another call."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def finished(partial: Path) -> int:
    """Shards of an unfinished build whose result stands."""
    return len(list((partial / "work").glob("*-*.json")))


@contextmanager
def held(image: Path) -> Iterator[None]:
    """Inside, a lease on `image` makes a reader wait, 45 s at most: the build stands still there."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the kernel asks for the lease
    handle = os.open(image, os.O_RDWR)
    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield
    finally:
        os.close(handle)
        signal.signal(signal.SIGIO, before)


SHARDS = ["--class-folders", "--shard-samples", 8, "--val-fraction", 0.2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `faces` and `whole`, the shards of an uninterrupted build."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_faces(folder / "faces", 100, ("a", "b"))
    assert run(*BUILD, "folder", folder / "faces", folder / "whole", *SHARDS).returncode == 0
    return folder


def first_of_shard(undisturbed: Path, number: int) -> Path:
    """The image that comes first in a shard of the undisturbed build."""
    shard = read_manifest(undisturbed / "whole").shards[number].file
    source = next(sample["source"] for sample in samples(undisturbed / "whole") if sample["shard"] == shard)
    return undisturbed / "faces" / source


@pytest.mark.parametrize(("workers", "number", "done"), [(1, 0, 0), (1, 5, 5), (2, 0, 11), (2, 7, 12)])
def test_a_build_killed_anywhere_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: Path, workers: int, number: int, done: int
) -> None:
    command = [*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS]
    with held(first_of_shard(undisturbed, number)):
        process = start(*command, "--workers", workers)
        wait_for((tmp_path / "out.partial" / "work" / "plan.json").exists, process)
        wait_for(lambda: finished(tmp_path / "out.partial") >= done, process)
        process.kill()
        process.communicate()
    assert not (tmp_path / "out").exists()
    again = run(*command, "--workers", 3 - workers)
    assert again.returncode == 0, again.stderr
    if done:
        assert "shards were kept from an earlier run" in again.stdout
    assert contents(tmp_path / "out") == contents(undisturbed / "whole")
    assert not (tmp_path / "out.partial").exists()


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def busy(process: "subprocess.Popen[bytes]") -> list[int]:
    """Workers that have opened the plan, children that are still copies of their parent left out."""
    return [
        pid
        for pid in children(process)
        if "shards.io.worker_pool" in Path(f"/proc/{pid}/cmdline").read_text()
        and "plan.sqlite" in " ".join(map(_target, Path(f"/proc/{pid}/fd").iterdir()))
    ]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_workers_do_not_outlive_a_killed_build(tmp_path: Path, undisturbed: Path) -> None:
    with held(first_of_shard(undisturbed, 0)):
        process = start(*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", 2)
        wait_for(lambda: busy(process), process)
        workers = children(process)
        process.kill()
        process.wait()
        end = time.monotonic() + 120
        while any("State:\tZ" not in _status(pid) for pid in workers):
            assert time.monotonic() < end
            time.sleep(0.02)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def test_a_build_killed_whole_can_leave_nothing_in_shared_memory(tmp_path: Path, undisturbed: Path) -> None:
    """Its processes have nothing there, Python's resource tracker included: who is killed with them cannot tidy up."""
    with held(first_of_shard(undisturbed, 0)):
        process = start(*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", 2)
        wait_for(lambda: busy(process), process)
        pids = [process.pid, *children(process)]
        assert len(pids) >= 3
        used = [
            line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm" in line
        ]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not used


def test_a_worker_that_dies_is_told_and_its_build_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    command = [*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", 2]
    with held(first_of_shard(undisturbed, 3)):
        process = start(*command)
        os.kill(wait_for(lambda: busy(process), process)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=800)
    assert process.returncode == 1
    assert re.fullmatch(rb"error: a worker process died.*\n", errors)
    assert run(*command).returncode == 0
    assert contents(tmp_path / "out") == contents(undisturbed / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, undisturbed: Path, workers: int) -> None:
    command = [*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", workers]
    with held(first_of_shard(undisturbed, 2)):
        process = start(*command)
        wait_for(lambda: finished(tmp_path / "out.partial"), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, errors = process.communicate(timeout=800)
    assert process.returncode == 130
    assert re.fullmatch(rb"finished shards are kept in .*; rerun the command to resume\n", errors)
    assert not (tmp_path / "out").exists()
    again = run(*command)
    assert "shards were kept from an earlier run" in again.stdout
    assert contents(tmp_path / "out") == contents(undisturbed / "whole")


def test_an_unfinished_build_is_refused_to_others(tmp_path: Path, undisturbed: Path) -> None:
    """To a second process at the same time, and to other options afterwards."""
    command = [*BUILD, "folder", undisturbed / "faces", tmp_path / "out", *SHARDS, "--workers", 1]
    with held(first_of_shard(undisturbed, 2)):
        process = start(*command)
        wait_for(lambda: finished(tmp_path / "out.partial"), process)
        second = run(*command)
        assert second.returncode == 1
        assert "is being built by another process" in second.stderr
        process.kill()
        process.communicate()
    other = run(*command, "--quality", 80)
    assert other.returncode == 1
    assert "unfinished build of other images or options" in other.stderr
    assert run(*command).returncode == 0
    assert contents(tmp_path / "out") == contents(undisturbed / "whole")


def test_building_again_says_what_it_did_not_look_at(tmp_path: Path) -> None:
    """A fixed file is not read again, because its name is the same."""
    faces = write_faces(tmp_path / "faces", 4)
    (faces / "broken.jpg").write_bytes(b"")
    command = [*BUILD, "folder", faces, tmp_path / "out"]
    assert run(*command).returncode == 0
    (faces / "broken.jpg").write_bytes(encoded(picture(5)))
    again = run(*command)
    assert (again.returncode, "4 samples of the same list and options" in again.stdout) == (0, True)
    assert "rejected when it was built: 1, see " in again.stdout
    assert "delete that folder and rerun the command" in again.stdout


def test_building_again_says_that_all_is_there_or_refuses(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", 10)
    command = [*BUILD, "folder", faces, tmp_path / "out"]
    assert run(*command).returncode == 0
    before = contents(tmp_path / "out")
    again = run(*command)
    assert (again.returncode, "already complete" in again.stdout) == (0, True)
    other = run(*command, "--quality", 80)
    assert other.returncode == 1
    assert "holds shards of other images or options" in other.stderr
    (faces / "new.jpg").write_bytes(encoded(picture(77)))
    assert run(*command).returncode == 1
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(("kilobytes", "words"), [(20, "cannot build"), (200, "File too large .*train-000000")])
def test_a_disk_that_fails_costs_no_image(tmp_path: Path, kilobytes: int, words: str) -> None:
    """A failure that no image causes stops the build in one line: files that cannot grow, while planning or writing."""
    faces = write_faces(tmp_path / "faces", 100)
    command = [*BUILD, "folder", faces, tmp_path / "out", "--workers", 1]
    done = run("bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", *command)
    assert done.returncode == 1
    assert re.fullmatch(f"error: .*{words}.*\n", done.stderr)
    assert not (tmp_path / "out").exists()
    assert run(*command).returncode == 0
    assert read_manifest(tmp_path / "out").samples == 100
