"""Folders that commands empty or delete: OUT.partial and a cache. What a user has in them stays."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from helpers.corpus_fixtures import BUILD, contents, run, tool, write_faces
from helpers.small_shards import make
from helpers.small_tars import make_tars

from shards.errors import UserError
from shards.io.atomic import write_atomic
from shards.io.staging import delete_build, is_build_staging
from shards.io.urls import join
from shards.reading.cache import Cache, cached_bytes

SUBSET = tool("subset_shards")
USERS = ("thesis.doc", "work/thesis.doc", "notes/a.txt", "shards")


@pytest.mark.parametrize(
    ("command", "name"), [("subset", "thesis.doc"), ("subset", "a-000000.tar/a"), *(("build", name) for name in USERS)]
)
def test_a_users_folder_with_the_name_of_a_partial_one_stays(command: str, name: str, tmp_path: Path) -> None:
    mine = tmp_path / "out.partial" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    words = [*SUBSET, make(tmp_path / "in"), tmp_path / "out", "--fraction", 1]
    if command == "build":
        words = [*BUILD, "folder", write_faces(tmp_path / "faces", 4, ("a",)), tmp_path / "out", "--workers", 1]
    done = run(*words)
    assert mine.read_text() == "mine"
    assert done.returncode == 1
    assert "out.partial" in done.stderr
    assert "choose another output" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["subset", "build"])
def test_a_link_with_the_name_of_a_partial_folder_is_not_followed(command: str, tmp_path: Path) -> None:
    mine = make(tmp_path / "mine")
    (tmp_path / "out.partial").symlink_to(mine)
    before = contents(mine)
    words = [*SUBSET, make(tmp_path / "in"), tmp_path / "out", "--fraction", 1]
    if command == "build":
        words = [*BUILD, "folder", write_faces(tmp_path / "faces", 4, ("a",)), tmp_path / "out", "--workers", 1]
    done = run(*words)
    assert done.returncode == 1
    assert "out.partial: is a link" in done.stderr
    assert contents(mine) == before
    assert not (tmp_path / "out").exists()


def test_a_finished_build_deletes_no_folder_of_a_user(tmp_path: Path) -> None:
    words = [*BUILD, "folder", write_faces(tmp_path / "faces", 4, ("a",)), tmp_path / "out", "--workers", 1]
    assert run(*words).returncode == 0
    mine = tmp_path / "out.partial" / "thesis.doc"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert run(*words).returncode == 0  # there already
    assert mine.read_text() == "mine"


def test_a_killed_subset_is_begun_again(tmp_path: Path) -> None:
    left = shutil.copytree(make(tmp_path / "in"), tmp_path / "out.partial")
    (left / ".train-000001.tar.123.tmp").touch()
    assert run(*SUBSET, tmp_path / "in", tmp_path / "out", "--fraction", 1).returncode == 0
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".tar", ".idx", ".json", ".jsonl"}


def test_a_cache_deletes_only_what_it_wrote(tmp_path: Path) -> None:
    infos = make_tars(tmp_path / "far", 3)
    folder = tmp_path / "home"
    (folder / "notes").mkdir(parents=True)
    mine = ["thesis.doc", ".profile", "backup.tar", "notes/a.txt", "a.part", "lock"]
    for name in mine:
        (folder / name).write_text("mine")
    cache = Cache(folder, cached_bytes(infos[0]))
    for info in infos:
        cache.open(join((tmp_path / "far").as_uri(), info.file), info, wait=1).close()
    assert [(folder / name).read_text() for name in mine] == ["mine"] * len(mine)
    assert len(list(folder.glob("*.tar"))) == 2  # a user's, and the one that there is room for


@pytest.mark.parametrize("name", ["lock", "{}.part"])
def test_links_in_a_cache_that_all_can_write_are_not_followed(name: str, tmp_path: Path) -> None:
    (info,) = make_tars(tmp_path / "far", 1)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name.format(info.sha256)).symlink_to(mine)
    with pytest.raises(UserError, match=r"data\.cache.*cannot be used"):
        Cache(tmp_path / "cache", 10**9).open(join((tmp_path / "far").as_uri(), info.file), info)
    assert mine.read_text() == "mine"


def test_a_link_with_the_name_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    link = tmp_path / f".out.{os.getpid()}.tmp"
    link.symlink_to(mine)  # to a file that is not there yet
    with pytest.raises(OSError, match="symbolic links"):
        write_atomic(tmp_path / "out", b"x")
    assert not mine.exists()


def test_a_deletion_that_is_killed_leaves_a_folder_known_to_be_of_a_build(tmp_path: Path) -> None:
    """Audit events come before each deletion of a file; at each of them the rest must be recognized."""
    folder = tmp_path / "shards.partial"
    for name in ("work/lock", "work/plan.sqlite", "work/a.json", "work/log/b", "shards/a.tar"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    seen: list[bool] = []

    def look(event: str, _: tuple[object, ...]) -> None:
        if event in {"os.remove", "os.rmdir"} and folder.exists() and not done:
            seen.append(is_build_staging(folder))

    done: list[bool] = []
    sys.addaudithook(look)
    delete_build(folder)
    done.append(True)
    assert not folder.exists()
    assert len(seen) >= 8
    assert all(seen)
