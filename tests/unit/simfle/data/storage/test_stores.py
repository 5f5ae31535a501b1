"""Shards behind URLs: the same samples as from a folder, fetched before they are needed, within the cache's limit."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.data_fixtures import drawn_corpus
from helpers.http_server import Served, served
from helpers.loader_cases import CPU, VIEWS, same, take

from shards.io import urls
from shards.reading.cache import Cache, cached_bytes
from simfle.config.schema import DataConfig
from simfle.data.dataset import REMOTE_TARS, ShardCorpus, open_corpus
from simfle.data.loader import Loader, RankSlice
from simfle.data.prefetch import ShardPrefetcher
from simfle.data.training_data import OrderedShards, make_sampler
from simfle.errors import UserError

pytestmark = pytest.mark.slow

DATA = DataConfig(backend="opencv", decode_threads=1, canonical_streams=2, shuffle_window=4)
COUNTS = (8,) * 12
BIG = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of eight; all but the third are of split train."""
    return drawn_corpus(tmp_path_factory.mktemp("far") / "shards", COUNTS)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(urls, "PAUSE", 0.01)
    with served(folder) as state:
        yield state


def loader(place: str | Path, cache: Cache | None = None, share: RankSlice = RankSlice()) -> Loader:  # noqa: B008
    corpus = ShardCorpus([place], ["train"], cache)
    return Loader(OrderedShards(corpus, make_sampler(corpus, DATA, 3, 4)), VIEWS, DATA, share, CPU)


def test_a_url_gives_what_the_folder_gives(folder: Path, server: Served, tmp_path: Path) -> None:
    """Three epochs of 22 steps, with room for less than half of the shards."""
    here, there = ShardCorpus([folder]), ShardCorpus([server.url], cache=Cache(tmp_path, BIG))
    assert there.digest() == here.digest()
    assert there.folders == (server.url,)
    assert [there.key(3, n) for n in range(8)] == [here.key(3, n) for n in range(8)]
    assert [there.label(3, n) for n in range(8)] == [here.label(3, n) for n in range(8)]
    assert there.metadata(3, 1) == here.metadata(3, 1)
    limit = 5 * max(cached_bytes(info) for _, info in here.shards)
    far = loader(server.url, Cache(tmp_path / "small", limit))
    assert same(take(far, 0, 66), take(loader(folder), 0, 66))
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= limit
    assert all(server.asked[f"train-{n:06d}.tar"] > 1 for n in range(11) if n not in (2, 3))  # evicted on the way


def test_shards_are_fetched_before_they_are_read(server: Served, tmp_path: Path) -> None:
    cache = Cache(tmp_path, BIG)
    corpus = ShardCorpus([server.url], ["train"], cache)
    order = make_sampler(corpus, DATA, 3, 4)
    ahead = ShardPrefetcher(corpus, order, (0, 2), 1.0)  # the first of two streams
    ahead.advance_to(0)
    ahead.wait()
    first = {int(shard) for window in range(11) for shard in order.window_shards(0, 0, window)}
    there = {number for number, (_, info) in enumerate(corpus.shards) if cache.has(info)}
    assert first <= there
    asked = server.asked.copy()
    for step in range(22):
        ids, _ = order.slot_ids(step, 0, 2)
        for place in zip(*corpus.locate(ids), strict=True):
            corpus.read_image(*map(int, place))
    assert server.asked == asked
    ahead.close()


def test_what_is_needed_next_stays_and_what_has_been_used_may_go(server: Served, tmp_path: Path) -> None:
    size = largest(server.url, tmp_path)
    cache = Cache(tmp_path / "near", 8 * size)
    corpus = ShardCorpus([server.url], ["train"], cache)
    order = make_sampler(corpus, DATA, 3, 4)
    ahead = ShardPrefetcher(corpus, order, (0, 2), 0.5)

    def needed(step: int) -> set[str]:
        epoch, windows = order.windows(step)
        shards = {int(shard) for window in windows for shard in order.window_shards(epoch, 0, window)}
        return {corpus.shards[shard][1].file for shard in shards}

    def read_all() -> dict[str, int]:
        """How often each shard had to be fetched for another reader, who passes through all of them twice."""
        before = server.asked.copy()
        for _ in range(2):
            for _, info in corpus.shards:
                cache.open(urls.join(server.url, info.file), info, wait=5).close()
        return {info.file: server.asked[info.file] - before[info.file] for _, info in corpus.shards}

    for step in (0, 18):
        ahead.advance_to(step)
        ahead.wait()
        fetched = read_all()
        assert {fetched[name] for name in needed(step)} == {0}
    assert needed(0) - needed(18)
    assert all(fetched[name] for name in needed(0) - needed(18))  # let go, and evicted
    ahead.close()


def largest(url: str, folder: Path) -> int:
    """Bytes that the largest shard takes in a cache."""
    return max(cached_bytes(info) for _, info in ShardCorpus([url], cache=Cache(folder / "unused", BIG)).shards)


PROCESS = """
import itertools, json, sys
from pathlib import Path
import torch
from shards.reading.cache import Cache
from simfle.config.schema import DataConfig, ViewsConfig
from simfle.data.loader import Loader, RankSlice
from simfle.data.training_data import OrderedShards, make_sampler
from simfle.data.dataset import ShardCorpus
url, folder, limit, rank = sys.argv[1:]
data = DataConfig(backend="opencv", decode_threads=1, canonical_streams=2, shuffle_window=4)
corpus = ShardCorpus([url], ["train"], Cache(Path(folder), int(limit)))
views, share = ViewsConfig(size=32, face_size=16), RankSlice(int(rank), 2, 2)
loader = Loader(OrderedShards(corpus, make_sampler(corpus, data, 3, 4)), views, data, share, torch.device("cpu"))
batches = loader.batches(0)
print(json.dumps([[batch.ids.tolist(), int(batch.view1.sum())] for batch in itertools.islice(batches, 44)]))
batches.close(); loader.close()
"""


def test_two_processes_share_a_cache_that_holds_half_of_the_shards(
    folder: Path, server: Served, tmp_path: Path
) -> None:
    expected = take(loader(folder), 0, 44)
    limit = 7 * largest(server.url, tmp_path)
    near = tmp_path / "near"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, server.url, str(near), str(limit), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [json.loads(process.communicate(timeout=800)[0]) for process in processes]
    for step, batch in enumerate(expected):
        parts = [output[step] for output in outputs]
        assert [number for ids, _ in parts for number in ids] == batch.ids.tolist()
        assert sum(pixels for _, pixels in parts) == int(batch.view1.to(torch.int64).sum())
    assert sum(path.stat().st_size for path in near.iterdir()) <= limit


def test_tars_that_nobody_needs_do_not_fill_the_cache(server: Served, tmp_path: Path) -> None:
    """Read in turn without an order, as an evaluation does."""
    size = largest(server.url, tmp_path)
    corpus = ShardCorpus([server.url], cache=Cache(tmp_path / "near", (REMOTE_TARS + 1) * size))
    for shard in range(12):
        corpus.read_image(shard, 0)
    assert server.asked["train-000011.tar"] == 1


def test_a_cache_that_is_too_small_is_said_before_the_first_batch(server: Served, tmp_path: Path) -> None:
    size = largest(server.url, tmp_path)
    with pytest.raises(UserError, match=r"data\.cache_gb=.*: less than one shard"):
        loader(server.url, Cache(tmp_path / "near", size - 600))
    tight = loader(server.url, Cache(tmp_path / "near", 2 * size))
    batches = tight.batches(0)
    with pytest.raises(UserError, match=r"data\.cache_gb: this process uses shards of .* GB at once"):
        next(batches)
    batches.close()
    tight.close()


def test_errors_of_urls(folder: Path, server: Served, tmp_path: Path) -> None:
    cache = Cache(tmp_path, BIG)
    with pytest.raises(UserError, match=r"/nowhere/manifest\.json does not exist"):
        ShardCorpus([server.url + "/nowhere"], cache=cache)
    with pytest.raises(UserError, match="is not allowed"):
        ShardCorpus(["pipe:curl http://x"], cache=cache)
    with pytest.raises(UserError, match=r"data\.cache_gb=0"):
        open_corpus(DataConfig(shards=[server.url], cache_dir=str(tmp_path), cache_gb=0))
    server.cut.add("train-000000.tar")
    with pytest.raises(UserError, match=r"train-000000\.tar: failed"):
        ShardCorpus([server.url], cache=cache).read_image(0, 0)
    with pytest.raises(UserError, match=r"have the same shard train-000000\.tar"):
        open_corpus(DataConfig(shards=[folder.as_uri(), str(folder)], cache_dir=str(tmp_path / "c")))
    configured = open_corpus(DataConfig(shards=[folder.as_uri()], cache_dir=str(tmp_path / "c")))
    assert len(configured) == 88
    assert bytes(configured.read_image(0, 1)) == bytes(ShardCorpus([str(folder)]).read_image(0, 1))


def test_the_command_line_keeps_a_url_whole(tmp_path: Path) -> None:
    """Also as the first word, where a file of configuration may stand."""
    root = Path(__file__).parents[5]
    command = [sys.executable, str(root / "launchers" / "pretrain.py"), "data.shards=[gs://bucket/faces]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "gs://bucket/faces: gs cannot be read here" in done.stderr
    assert "pip install gcsfs" in done.stderr
