"""Archives, indexes and servers with false sizes: each ends in one line, and no reader waits forever."""

import gzip
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.corpus_fixtures import encoded, picture, run, tool
from helpers.scripted_server import Asked, Scripted, scripted, whole
from helpers.small_shards import change, make

from shards.entry import Rejected
from shards.errors import UserError
from shards.format.index import index_tar
from shards.io import urls
from shards.io.urls import open_url, read_url
from shards.reading.dataset import ShardDataset
from shards.sources.containers.tars import read_tar

JPEG = encoded(picture(1))
SUBSET = tool("subset_shards")


def member(name: str, **headers: str) -> bytes:
    """A member of a tar, with pax records."""
    item = tarfile.TarInfo(name)
    item.size, item.pax_headers = len(JPEG), headers
    told = item.create_pax_header(item.get_info(), "utf-8") if headers else item.tobuf()
    return told + JPEG + bytes(-len(JPEG) % 512)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PAUSE", 0.01)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_negative_size_does_not_lead_back(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    head = len(member("a.jpg", size="-9999")) - len(JPEG) - -len(JPEG) % 512
    # Its size leads to where its own headers begin: read again and again.
    tar.write_bytes(member("b.jpg") + member("a.jpg", size=str(-head)) + bytes(1024))
    with pytest.raises(UserError, match="negative size"):
        index_tar(tar)
    found = list(itertools.islice(read_tar(tar), 5))
    assert [type(item) is Rejected for item in found] == [False, True]


def test_a_sparse_member_has_no_place_in_an_index(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    sparse = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "s.jpg"}
    sparse |= {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1", "GNU.sparse.map": f"0,{len(JPEG)}"}
    tar.write_bytes(member("s.jpg", **sparse) + member("b.jpg") + bytes(1024))
    assert index_tar(tar).keys == ("b",)


@pytest.mark.parametrize("how", ["a member of 200 GB", "the same bytes in each sample"])
def test_an_index_that_lists_more_than_its_tar_has(how: str, tmp_path: Path) -> None:
    bad = make(tmp_path / "bad")
    size = 200 << 30
    if how == "a member of 200 GB":
        os.truncate(bad / "train-000000.tar", size)
        change(bad, bytes=size)
        told = re.sub(r"jpg (\d+) \d+", rf"jpg \1 {size - 4096}", (bad / "train-000000.idx").read_text(), count=1)
    else:
        size = (bad / "train-000000.tar").stat().st_size
        told = re.sub(r"jpg \d+ \d+", f"jpg 512 {size - 4096}", (bad / "train-000000.idx").read_text())
    (bad / "train-000000.idx").write_text(told)
    done = run(*SUBSET, bad, tmp_path / "out", "--fraction", 1)
    assert done.returncode == 1
    assert "train-000000.tar is shorter than its index says" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="shorter than its index says"):
        ShardDataset(bad)[0]


@pytest.mark.usefixtures("_soon")
def test_continue_without_end() -> None:
    def answer(_: Scripted, __: Asked) -> Iterator[bytes]:
        yield from itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    with scripted(answer) as server, pytest.raises(UserError, match="more than 100 interim responses"):
        read_url(f"{server.url}/x")


@pytest.mark.usefixtures("_soon")
def test_trailers_without_end() -> None:
    def answer(_: Scripted, __: Asked) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
        yield from itertools.repeat(b"X: y\r\n" * 1000)

    with scripted(answer) as server:
        assert read_url(f"{server.url}/x") == b"hello"


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (whole(b"he", "Content-Range: bytes 0-1/5", status="206 Partial Content"), "returned HTTP 206 Partial Content"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "returned HTTP 204 No Content"),
        (whole(gzip.compress(b"hello", mtime=0), "Content-Encoding: gzip"), "sends unrequested compression"),
    ],
)
def test_an_answer_that_is_not_the_file(answer: bytes, words: str) -> None:
    with scripted(lambda _, __: iter([answer])) as server:
        with pytest.raises(UserError, match=words):
            open_url(f"{server.url}/x")
        assert len(server.asked) == 1
