"""The shard cache: real processes, a real server, real kills."""

import contextlib
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.http_server import served
from helpers.small_tars import make_tar, make_tars

from shards.errors import UserError
from shards.format.index import index_tar
from shards.format.manifest import ShardInfo
from shards.io import urls
from shards.io.urls import join
from shards.reading import cache as caching
from shards.reading.cache import Cache, CacheFullError, DownloadCancelledError, cached_bytes

pytestmark = pytest.mark.slow

BIG = 10**9


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PAUSE", 0.01)


def held(cache: Cache) -> set[str]:
    return {path.stem for path in cache.folder.glob("*.tar")}


def in_it(cache: Cache) -> int:
    return sum(path.stat().st_size for path in cache.folder.iterdir() if path.name != "lock")


READER = """
import hashlib, sys
from pathlib import Path
from shards.reading.cache import Cache
from shards.format.manifest import ShardInfo
folder, limit, url, *infos = sys.argv[1:]
cache = Cache(Path(folder), int(limit))
print("ready", flush=True)
sys.stdin.readline()
for turn in range(int(sys.stdin.readline())):
    for text in infos:
        name, size, digest = text.split(",")
        with cache.open(f"{url}/{name}", ShardInfo(name, "train", 1, int(size), digest)) as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest, name
            print("open", name, flush=True)
            if turn < 0: sys.stdin.readline()
"""


def start(cache: Cache, url: str, infos: list[ShardInfo]) -> subprocess.Popen[str]:
    words = [f"{info.file},{info.bytes},{info.sha256}" for info in infos]
    command = [sys.executable, "-c", READER, str(cache.folder), str(cache.limit), url, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(process: subprocess.Popen[str], turns: int = 1) -> None:
    assert process.stdin
    process.stdin.write(f"\n{turns}\n")
    process.stdin.flush()


def test_several_processes_ask_for_the_same_shards_and_each_is_downloaded_once(tmp_path: Path) -> None:
    infos = make_tars(tmp_path / "far", 3, 300_000)
    cache = Cache(tmp_path / "near", BIG)
    with served(tmp_path / "far") as server:
        server.slow = 0.05
        processes = [start(cache, server.url, infos) for _ in range(4)]
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            go(process, 2)
        assert [process.wait(60) for process in processes] == [0] * 4
        assert server.asked == {info.file: 1 for info in infos}
    assert held(cache) == {info.sha256 for info in infos}
    assert not list(cache.folder.glob("*.part"))


def test_processes_that_fight_for_space_read_the_right_bytes_within_the_limit(tmp_path: Path) -> None:
    infos = make_tars(tmp_path / "far", 6)
    cache = Cache(tmp_path / "near", 3 * cached_bytes(infos[0]))
    most = 0
    with served(tmp_path / "far") as server:
        processes = [start(cache, server.url, infos[turn:] + infos[:turn]) for turn in range(3)]
        for process in processes:
            go(process, 4)
        while any(process.poll() is None for process in processes):
            sizes = []
            for path in cache.folder.iterdir():
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            most = max(most, sum(sizes))
            time.sleep(0.002)
        assert [process.returncode for process in processes] == [0] * 3
        assert sum(server.asked.values()) > 6  # or there was no fight
    assert 0 < most <= cache.limit
    assert len(held(cache)) <= 3


def test_a_killed_download_leaves_nothing_that_hurts(tmp_path: Path) -> None:
    (info,) = make_tars(tmp_path / "far", 1, 2_000_000)
    cache = Cache(tmp_path / "near", cached_bytes(info))
    with served(tmp_path / "far") as server:
        server.slow = 0.1
        process = start(cache, server.url, [info])
        go(process)
        part = cache.folder / f"{info.sha256}.part"
        while not (part.exists() and part.stat().st_size):
            time.sleep(0.01)
        assert not held(cache)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert part.exists()
        server.slow = 0
        other = make_tar(tmp_path / "far", "other.tar", 1_500_000)
        with cache.open(join(server.url, "other.tar"), other, wait=5) as file:  # the dead download takes no space
            assert hashlib.sha256(file.read()).hexdigest() == other.sha256
        assert not part.exists()
        with cache.open(join(server.url, info.file), info, wait=5) as file:
            assert hashlib.sha256(file.read()).hexdigest() == info.sha256
    assert held(cache) == {info.sha256}
    assert sorted(path.suffix for path in cache.folder.iterdir()) == ["", ".idx", ".sum", ".tar"]


def test_a_killed_reader_holds_nothing(tmp_path: Path) -> None:
    first, second = make_tars(tmp_path / "far", 2)
    cache = Cache(tmp_path / "near", cached_bytes(first))
    program = (
        "import sys; from pathlib import Path; from shards.reading.cache import Cache; from "
        "shards.format.manifest import ShardInfo\n"
        "folder, limit, url, size, digest = sys.argv[1:]\n"
        "file = Cache(Path(folder), int(limit)).open(url, ShardInfo('t.tar', 'train', 1, int(size), digest))\n"
        "print('held', flush=True); sys.stdin.readline()"
    )
    url = (tmp_path / "far").as_uri()
    arguments = [str(cache.folder), str(cache.limit), join(url, first.file), str(first.bytes), first.sha256]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    with pytest.raises(CacheFullError, match=r"data\.cache_gb"):
        cache.open(join(url, second.file), second, wait=0.5)
    assert held(cache) == {first.sha256}
    process.kill()
    process.wait()
    cache.open(join(url, second.file), second, wait=5).close()
    assert held(cache) == {second.sha256}


def test_a_mapped_shard_stays_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    infos = make_tars(tmp_path / "far", 4)
    url = (tmp_path / "far").as_uri()
    cache = Cache(tmp_path / "near", 3 * cached_bytes(infos[0]))
    cache.open(join(url, infos[0].file), infos[0]).close()
    with cache.open(join(url, infos[0].file), infos[0]) as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for info in infos[1:3]:
        cache.open(join(url, info.file), info).close()
    cache.open(join(url, infos[1].file), infos[1]).close()  # so that 2 is the longest unused
    cache.open(join(url, infos[3].file), infos[3], wait=1).close()
    assert held(cache) == {infos[number].sha256 for number in (0, 1, 3)}
    assert hashlib.sha256(content).hexdigest() == infos[0].sha256
    content.close()
    for info in infos[1:]:
        cache.open(join(url, info.file), info, wait=1).close()
    assert infos[0].sha256 not in held(cache)
    assert in_it(cache) <= cache.limit


def test_a_download_that_is_given_up_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the names of a folder and their sizes another process may take one away."""
    cache = Cache(tmp_path / "cache", BIG)
    (cache.folder / "other.tar").touch()
    for number in range(3):
        (cache.folder / f"{number:064x}.part").touch()
    listed = os.scandir

    @contextlib.contextmanager
    def late(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with listed(folder) as entries:
            names = list(entries)
        for entry in names:
            if entry.name.endswith(".part"):
                Path(entry.path).unlink()
        yield names

    monkeypatch.setattr(caching.os, "scandir", late)
    assert cache._evict(BIG, cache.folder / f"{9:064x}.part")
    assert (cache.folder / "other.tar").exists()


def test_waiting_for_space_ends_when_there_is_some(tmp_path: Path) -> None:
    first, second = make_tars(tmp_path / "far", 2)
    url = (tmp_path / "far").as_uri()
    cache = Cache(tmp_path / "near", cached_bytes(first))
    file = cache.open(join(url, first.file), first)
    timer = threading.Timer(0.4, file.close)
    timer.start()
    cache.open(join(url, second.file), second, wait=30).close()
    assert held(cache) == {second.sha256}


def test_what_is_not_as_the_manifest_says_never_becomes_visible(tmp_path: Path) -> None:
    (info,) = make_tars(tmp_path / "far", 1)
    tar = tmp_path / "far" / info.file
    good = tar.read_bytes()
    cache = Cache(tmp_path / "near", BIG)
    with served(tmp_path / "far") as server:
        for content in (good[:-1] + b"x", good + b"more", good[:-10]):
            tar.write_bytes(content)
            with pytest.raises(UserError, match=r"train-000000\.tar.*(sha256|bytes)"):
                cache.open(join(server.url, info.file), info)
            assert [path.name for path in cache.folder.iterdir()] == ["lock"]
        tar.unlink()
        with pytest.raises(UserError, match="does not exist, but its manifest lists it"):
            cache.open(join(server.url, info.file), info)
        tar.write_bytes(good)
        server.fails[info.file] = server.asked[info.file] + 2  # two more times
        cache.open(join(server.url, info.file), info).close()
        server.cut.add(info.file)
        (cache.folder / f"{info.sha256}.tar").unlink()
        with pytest.raises(UserError, match=f"failed {urls.TRIES} times"):
            cache.open(join(server.url, info.file), info)
    assert not list(cache.folder.glob("*.part"))


def test_the_index_comes_from_the_checked_tar(tmp_path: Path) -> None:
    (info,) = make_tars(tmp_path / "far", 1)
    (tmp_path / "far" / "train-000000.idx").write_text("v1.2 1\njpg 0 99999999 wrong.jpg\n")
    cache = Cache(tmp_path / "near", BIG)
    url = join((tmp_path / "far").as_uri(), info.file)
    expected = index_tar(tmp_path / "far" / info.file)
    assert cache.index(url, info).members(0) == expected.members(0)
    (cache.folder / f"{info.sha256}.idx").unlink()
    assert cache.index(url, info).members(0) == expected.members(0)


def other(tar: Path) -> bytes:
    """A tar of the same size, names and members, whose images are others."""
    content = bytearray(tar.read_bytes())
    offset, size = (column[0] for column in index_tar(tar).column("jpg"))
    content[offset : offset + size] = bytes(reversed(content[offset : offset + size]))
    return bytes(content)


@pytest.mark.parametrize("fault", ["cut", "empty", "other", "other, and its index", "other, no sums", "corrupt sums"])
def test_a_damaged_copy_is_fetched_again(fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (info,) = make_tars(tmp_path / "far", 1)
    good = (tmp_path / "far" / info.file).read_bytes()
    expected = index_tar(tmp_path / "far" / info.file)
    cache = Cache(tmp_path / "near", cached_bytes(info))
    with served(tmp_path / "far") as server:
        url = join(server.url, info.file)
        cache.open(url, info).close()
        tar = cache.folder / f"{info.sha256}.tar"
        tar.write_bytes({"cut": good[:-1000], "empty": b"", "corrupt sums": good}.get(fault, other(tar)))
        if "index" in fault:
            tar.with_suffix(".idx").write_bytes(b"v1.2 1\njpg 0 10 wrong.jpg\n")
        if "sums" in fault:
            tar.with_suffix(".sum").write_bytes(b"" if "corrupt" in fault else b"\0")
        if "no sums" in fault:
            tar.with_suffix(".sum").unlink()
        with cache.open(url, info) as file:
            assert file.read() == good
        assert cache.index(url, info).members(0) == expected.members(0)
        assert server.asked[info.file] == (1 if fault == "corrupt sums" else 2)  # of a sound one only its sums are made
    assert caplog.text.count("is corrupt; downloading it again") == (fault != "corrupt sums")
    assert in_it(cache) <= cache.limit
    assert sorted(path.suffix for path in cache.folder.iterdir()) == ["", ".idx", ".sum", ".tar"]


@pytest.mark.parametrize("content", [b"", b"v1.2 1\njpg 0 10 wrong.jpg\n", b"v1.2 9\n"])
def test_a_damaged_index_is_made_again(content: bytes, tmp_path: Path) -> None:
    (info,) = make_tars(tmp_path / "far", 1)
    cache = Cache(tmp_path / "near", BIG)
    with served(tmp_path / "far") as server:
        good = cache.index(join(server.url, info.file), info).members(0)
        (cache.folder / f"{info.sha256}.idx").write_bytes(content)
        assert cache.index(join(server.url, info.file), info).members(0) == good
        assert server.asked[info.file] == 1


def test_several_processes_find_the_same_damage(tmp_path: Path) -> None:
    infos = make_tars(tmp_path / "far", 3)
    cache = Cache(tmp_path / "near", BIG)
    with served(tmp_path / "far") as server:
        processes = [start(cache, server.url, infos) for _ in range(3)]
        for info in infos:
            (cache.folder / f"{info.sha256}.tar").write_bytes(b"no tar")
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            go(process, 3)
        assert [process.wait(60) for process in processes] == [0] * 3
        assert server.asked == {info.file: 1 for info in infos}


def test_a_download_can_be_stopped(tmp_path: Path) -> None:
    (info,) = make_tars(tmp_path / "far", 1, 3_000_000)
    cache = Cache(tmp_path / "near", BIG)
    with served(tmp_path / "far") as server, pytest.raises(DownloadCancelledError):
        cache.open(join(server.url, info.file), info, stop=lambda: server.asked[info.file] > 0)
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def test_memory_urls(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    (info,) = make_tars(tmp_path / "far", 1)
    fsspec.filesystem("memory").pipe("/faces/train-000000.tar", (tmp_path / "far" / info.file).read_bytes())
    cache = Cache(tmp_path / "near", BIG)
    with cache.open("memory://faces/train-000000.tar", info) as file:
        assert hashlib.sha256(file.read()).hexdigest() == info.sha256


def test_what_cannot_be_cached_is_refused_at_once(tmp_path: Path) -> None:
    (info,) = make_tars(tmp_path / "far", 1)
    url = join((tmp_path / "far").as_uri(), info.file)
    with pytest.raises(CacheFullError, match=r"data\.cache_gb"):
        Cache(tmp_path / "near", cached_bytes(info) - 1).open(url, info)
    with pytest.raises(UserError, match="no valid sha256"):
        Cache(tmp_path / "near", BIG).open(url, ShardInfo(info.file, "train", 1, info.bytes, "../../x"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*: cannot be used"):
        Cache(tmp_path / "file", BIG)
    assert caching.default_folder().name == "shards"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("pipe:curl http://x/y", "is not allowed"),
        ("simplecache::http://x/y", "is not allowed"),
        ("ftp://x/y", "is not allowed"),
        ("gs://bucket/y", r"pip install gcsfs \(or '\.\[gcs\]' in the checkout"),
        ("s3://bucket/y", r"pip install s3fs \(or '\.\[s3\]' in the checkout"),
        ("az://bucket/y", r"pip install adlfs \(or '\.\[azure\]' in the checkout"),
    ],
)
def test_urls_that_are_not_read(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        urls.check_url(url)
    with pytest.raises(UserError, match="is read-only"):
        urls.check_url("https://x/y", write=True)


def test_urls_for_people_and_for_programs() -> None:
    assert join("https://me:secret@host/a/?sig=1", "b.tar") == "https://me:secret@host/a/b.tar?sig=1"
    assert join("s3://bucket/a/", "b.tar") == "s3://bucket/a/b.tar"
    assert urls.redact_url("https://me:secret@host/a/b.tar?sig=1") == "https://host/a/b.tar"
    assert not urls.is_url("/data/shards")
