"""Commands that cannot process shards at a URL report this in one line, without its password."""

import sys
from pathlib import Path

import pytest
from helpers.corpus_fixtures import BUILD, run, tool, write_faces

URL = "https://me:secret@host/shards?signature=1"
COMMANDS: dict[str, list[str]] = {
    "find_duplicates": [URL],
    "inspect_shards": [URL],
    "index_shards": [URL],
    "shards_statistics": [URL],
    "remove_samples": [URL, "--key", "a"],
    "subset_shards": [URL, "out", "--fraction", "0.1"],
    "split_shards": [URL, "out", "--splits", "a=0.5,b=0.5"],
    "merge_shards": [URL, "here", "out"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_shards_behind_a_url(name: str) -> None:
    command = [sys.executable, "-m", "simfle", "shards", "statistics"] if name == "shards_statistics" else tool(name)
    done = run(*command, *COMMANDS[name])
    assert done.returncode == 1
    assert done.stderr.startswith("error: https://host/shards: not a local folder")
    assert len(done.stderr.splitlines()) == 1


def test_against_shards_behind_a_url(tmp_path: Path) -> None:
    assert "not a local folder" in run(*tool("find_duplicates"), tmp_path, "--against", URL).stderr


def test_excluding_shards_behind_a_url(tmp_path: Path) -> None:
    done = run(*BUILD, "folder", write_faces(tmp_path / "faces", 1), tmp_path / "out", "--exclude", URL)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --exclude=https://host/shards: is a URL. Fix: ")
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]
