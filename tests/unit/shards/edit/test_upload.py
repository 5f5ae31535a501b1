"""Shards built to a URL, and from sources behind URLs."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from helpers.corpus_fixtures import BUILD, VERIFY, contents, run, write_faces
from helpers.http_server import served

from shards.edit.upload import Upload, manifest_at
from shards.errors import UserError
from shards.io import urls

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 faces in faces/, and their shards in out/."""
    folder = tmp_path_factory.mktemp("local")
    write_faces(folder / "faces", 40, ("a", "b"))
    done = run(*BUILD, "folder", folder / "faces", folder / "out", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder


OPTIONS = ("--class-folders", "--shard-samples", "4", "--workers", "1")


def test_a_build_to_a_url_is_the_local_build(local: Path, tmp_path: Path) -> None:
    url, work = (tmp_path / "there").as_uri(), tmp_path / "work"
    command = [*BUILD, "folder", local / "faces", url, *OPTIONS, "--work", work]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert f"simfle shards verify {url}" in done.stdout
    assert contents(tmp_path / "there") == contents(local / "out")
    assert not contents(work)
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert f"{url} is already complete" in again.stdout
    other = run(*command, "--quality", "50")
    assert other.returncode == 1
    assert "other images or options" in other.stderr
    assert not contents(work)
    assert contents(tmp_path / "there") == contents(local / "out")
    assert run(*VERIFY, url).returncode == 0


def test_killed_at_any_time_it_goes_on(local: Path, tmp_path: Path) -> None:
    there, work = tmp_path / "there", tmp_path / "work"
    words = [str(word) for word in (*BUILD, "folder", local / "faces", there.as_uri(), *OPTIONS, "--work", work)]
    stages: list[Callable[[], object]] = [
        lambda: any(work.glob("*/shards.partial/shards/*.tar")),
        lambda: any(there.glob("*.tar")),
    ]
    for reached in stages:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
        while not reached() and process.poll() is None:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert contents(there) == contents(local / "out")


class Interrupted(Exception):  # noqa: N818 - stands for a kill
    """Raised by a progress function."""


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_an_upload_goes_on_where_it_was(local: Path, tmp_path: Path, kind: str) -> None:
    url = (tmp_path / "there").as_uri() if kind == "file" else f"memory://{tmp_path.name}/there"
    record = tmp_path / "record.json"

    def stop(done: int, _: int) -> None:
        if done == 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        Upload(local / "out", url, record).run(stop)
    assert manifest_at(url) is None
    before = json.loads(record.read_bytes())
    assert len(before) >= 8
    corrupt, lost = list(before)[:2]
    system, path = fsspec.core.url_to_fs(url)
    system.pipe(f"{path}/{corrupt}", b"half")
    system.rm(f"{path}/{lost}")
    again = Upload(local / "out", url, record)
    seen: list[tuple[int, int]] = []
    again.run(lambda done, total: seen.append((done, total)))
    assert again.skipped == len(before) - 2
    assert seen[-1] == (22, 22)  # ten tars with indexes, rejected.jsonl, the manifest
    expected = contents(local / "out")
    assert {name: system.cat(f"{path}/{name}") for name in expected} == expected
    assert manifest_at(url) is not None


def test_what_else_is_there_is_not_touched(local: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.pdf").write_text("")
    url = (tmp_path / "there").as_uri()
    with pytest.raises(UserError, match=r"contains other files \(thesis\.pdf"):
        Upload(local / "out", url, tmp_path / "record.json").run(lambda *_: None)
    assert contents(tmp_path / "there") == {"thesis.pdf": b""}


def test_refusals_come_before_any_work(local: Path, tmp_path: Path) -> None:
    for url, words in (
        ("https://host/shards", "is read-only"),
        ("s3://bucket/shards", "pip install s3fs"),
        ("ftp://host/shards", "is not allowed"),
    ):
        done = run(*BUILD, "folder", local / "faces", url, *OPTIONS, "--work", tmp_path / "work")
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert words in done.stderr
    assert not (tmp_path / "work").exists()


def test_archives_and_tars_from_urls(local: Path, tmp_path: Path) -> None:
    far, work = tmp_path / "far", tmp_path / "work"
    far.mkdir()
    shutil.make_archive(str(far / "faces"), "zip", local / "faces")
    shutil.make_archive(str(far / "faces"), "tar", local / "faces")
    here = run(*BUILD, "archive", far / "faces.zip", tmp_path / "here", *OPTIONS)
    assert here.returncode == 0, here.stderr
    with served(far) as server:
        command = [*BUILD, "archive", f"{server.url}/faces.zip", tmp_path / "there", *OPTIONS, "--work", work]
        there = run(*command)
        assert there.returncode == 0, there.stderr
        assert contents(tmp_path / "there") == contents(tmp_path / "here")
        assert run(*command).returncode == 0
        assert server.asked == {"faces.zip": 1}
        (archive,) = work.rglob("faces.zip")
        os.truncate(archive, archive.stat().st_size // 2)
        assert run(*command).returncode == 0
        assert server.asked == {"faces.zip": 2}
        assert archive.read_bytes() == (far / "faces.zip").read_bytes()
        missing = run(*BUILD, "archive", f"{server.url}/none.zip", tmp_path / "none", "--work", work)
    assert missing.returncode == 1
    assert "does not exist. Fix: check the URL" in missing.stderr
    folder = run(*BUILD, "archive", far.as_uri(), tmp_path / "both", "--class-folders", "--work", work)
    assert folder.returncode == 0, folder.stderr  # both archives: each name is the first folder, the label
    empty = run(*BUILD, "folder", (local / "faces").as_uri(), tmp_path / "raw", "--work", work)
    assert "no archives or Parquet files" in empty.stderr
    assert not list(work.rglob("*.tmp"))


def test_a_webdataset_from_a_url(local: Path, tmp_path: Path) -> None:
    url, work = (local / "out").as_uri(), tmp_path / "work"
    done = run(*BUILD, "webdataset", url, tmp_path / "there", "--shard-samples", "4", "--work", work)
    assert done.returncode == 0, done.stderr
    here = run(*BUILD, "webdataset", local / "out", tmp_path / "here", "--shard-samples", "4")
    assert here.returncode == 0, here.stderr
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_http_has_no_size_and_is_no_folder() -> None:
    assert urls.file_size("https://host/x") is None
    assert not urls.is_directory("https://host/x")
    assert urls.list_names("https://host/x") is None
    with pytest.raises(UserError, match="does not exist"):
        urls.is_directory("file:///nowhere/at/all")
