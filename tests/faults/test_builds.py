"""A shard build with a fault ends with the same bytes, or stops with one line and resumes when possible."""

import hashlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fork_server import At, ForkServer
from faults.scenario import read_only

EVERY = 13  # tests every 13th of its file operations, about 70; make soak draws the others


def words(out: Path) -> list[str]:
    few = ["--people", "6", "--images-per-person", "2", "--size", "64", "--shard-samples", "4", "--workers", "1"]
    return ["tools/build_shards.py", "procedural", str(out), *few]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    temporary = tmp_path_factory.mktemp("builds") / "tmp"
    parent = ForkServer(temporary, "simfle.commands.shards.build", "shards.sources.registry", "shards.build.builder")
    yield parent
    parent.close()
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def expected(nursery: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the files of an undisturbed build."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    child = nursery.start(words(out), out.with_name("log"))
    assert child.wait() == 0, child.output
    return digests(out)


def test_killed_before_file_operations(nursery: ForkServer, expected: dict[str, str], tmp_path: Path) -> None:
    out, log = tmp_path / "shards", tmp_path / "log"
    killed = 0
    for moment in range(1, 1000, EVERY):
        child = nursery.start(words(out), log, at=At(str(out), nth=moment))
        if child.wait() == 0:
            break
        assert child.code == -signal.SIGKILL, child.output
        killed += 1
        again = nursery.start(words(out), log)
        assert again.wait() == 0, again.output
        assert digests(out) == expected
        assert [path.name for path in tmp_path.iterdir() if path != log] == ["shards"]
        shutil.rmtree(out)
    assert killed > 3


def test_terminated(nursery: ForkServer, expected: dict[str, str], tmp_path: Path) -> None:
    out, log = tmp_path / "shards", tmp_path / "log"
    child = nursery.start(words(out), log)
    while not (tmp_path / "shards.partial").exists() and child.poll() is None:
        time.sleep(0.005)
    child.send(signal.SIGTERM)
    assert child.wait() in (-signal.SIGTERM, 143, 0), child.output
    assert nursery.start(words(out), log).wait() == 0
    assert digests(out) == expected


def test_read_only(nursery: ForkServer, expected: dict[str, str], tmp_path: Path) -> None:
    place, log = tmp_path / "place", tmp_path / "log"
    place.mkdir()
    with read_only(place):
        child = nursery.start(words(place / "shards"), log)
        assert child.wait() == 1
        assert child.last_line.startswith("error: ")
        assert str(place) in child.last_line
        assert "Traceback" not in child.output
    assert nursery.start(words(place / "shards"), log).wait() == 0
    assert digests(place / "shards") == expected
