"""The plan keeps the location of an entry's image, which does not determine the plan."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shards.build.failures import describe_failure
from shards.build.plan import BuildPlan, make_plan
from shards.entry import Entry, LazyBytes
from shards.rules import EntryRules

READS = {
    "path": Path("/faces/a.jpg"),
    "bytes": b"\xff\xd8",
    "nothing": b"",
    "recipe": LazyBytes("shards.x:y", (1, "two", None)),
    "piece": LazyBytes("shards.x:y", (3, 4), Path("/faces/all.tar")),
}


def planned(path: Path, reads: dict) -> tuple[str, dict]:
    digest = make_plan(path, [Entry(key, key, read) for key, read in reads.items()], EntryRules(), {}, 10)
    with closing(BuildPlan(path)) as plan:
        return digest, {item.entry.key: item.entry.read for shard in plan.shards() for item in plan.entries(shard)}


def test_every_kind_of_read_comes_back(tmp_path: Path) -> None:
    assert planned(tmp_path / "p", READS)[1] == READS


def test_where_the_files_lie_decides_nothing(tmp_path: Path) -> None:
    elsewhere = READS | {"path": Path("/other/a.jpg"), "piece": LazyBytes("shards.x:y", (3, 4), Path("/other/all.tar"))}
    first = planned(tmp_path / "p", READS)[0]
    assert planned(tmp_path / "q", elsewhere)[0] == first
    moved = READS | {"piece": LazyBytes("shards.x:y", (3, 5), Path("/faces/all.tar"))}
    assert planned(tmp_path / "r", moved)[0] != first


def test_a_plan_can_be_read_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reads = planned(tmp_path / "p", {"path": Path("a.jpg"), "piece": LazyBytes("shards.x:y", (), Path("b.tar"))})[1]
    assert reads == {"path": tmp_path / "a.jpg", "piece": LazyBytes("shards.x:y", (), tmp_path / "b.tar")}


def test_a_plan_needs_no_locks_of_its_file_system(tmp_path: Path) -> None:
    """SQLite's locks fail on some network file systems; the build holds the lock of its folder instead."""
    locked = []

    def listed() -> Iterator[Entry]:
        yield Entry("a", "a", b"x")
        locked.append(str((tmp_path / "p").stat().st_ino) in Path("/proc/locks").read_text())
        yield Entry("b", "b", b"y")

    make_plan(tmp_path / "p", listed(), EntryRules(), {}, 10)
    assert locked == [False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("database is locked", "Fix: build on a local disk"),
        ("disk I/O error", "Fix: build on a local disk"),
        ("unable to open database file", "Fix: run ulimit -n 4096"),
        ("database or disk is full", "Fix: free space, or set SQLITE_TMPDIR"),
    ],
)
def test_errors_of_the_plan_say_what_to_do(tmp_path: Path, text: str, words: str) -> None:
    told = describe_failure(sqlite3.OperationalError(text), tmp_path)
    assert told.startswith(f"{text}: ")
    assert words in told
