"""Streams: what they promise, what they say, and that no shell is near."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.data_fixtures import drawn_corpus, jpeg, picture
from helpers.http_server import Served, served
from helpers.loader_cases import CPU, VIEWS, take

from shards.io import urls as url_io
from simfle.config.schema import DataConfig, PretrainConfig
from simfle.data.loader import Loader, RankSlice
from simfle.data.storage import resampled
from simfle.data.storage.resampled import ResampledStream, expand
from simfle.data.training_data import open_data
from simfle.data.views import sample_view_params
from simfle.errors import UserError
from simfle.train.preflight import check

pytestmark = pytest.mark.slow

webdataset = pytest.importorskip("webdataset")
ALL = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tars of eight, a sample without an image in each."""
    path = tmp_path_factory.mktemp("far")
    for shard in range(5):
        with webdataset.TarWriter(str(path / f"faces-{shard:03d}.tar")) as writer:
            for number in range(8):
                writer.write({"__key__": f"s{shard}{number}", "jpg": jpeg(picture(8 * shard + number, 40, 40))})
            writer.write({"__key__": "none", "txt": "no image"})
    return path


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(url_io, "PAUSE", 0.01)
    with served(folder) as state:
        yield state


def config(*places: str, window: int = 8) -> DataConfig:
    return DataConfig(shards=list(places), resampled=True, backend="opencv", decode_threads=1, shuffle_window=window)


def loader(data: DataConfig, rank: int = 0, size: int = 1) -> Loader:
    source = open_data(data, 3, 4 * size, rank)
    return Loader(source, VIEWS, data, RankSlice(rank, size, size), CPU)


def ids(data: DataConfig, start: int = 0, rank: int = 0) -> list[int]:
    return [number for batch in take(loader(data, rank, 2), start, 15) for number in batch.ids.tolist()]


def test_a_stream_yields_the_same_kind_of_batch(server: Served) -> None:
    batches = take(loader(config(server.url + "/faces-{000..004}.tar")), 7, 30)
    for step, batch in enumerate(batches, 7):
        assert batch.view1.shape == (4, 3, 32, 32)
        assert batch.view1.is_contiguous(memory_format=torch.channels_last)
        drawn = sample_view_params(
            3, step, batch.ids.numpy(), VIEWS
        )  # the same parameters as everywhere, the step for the epoch
        assert torch.equal(batch.mask_uniform, torch.from_numpy(drawn.group))
    seen = {number for batch in batches for number in batch.ids.tolist()}
    assert 20 < len(seen) <= ALL
    assert all(number >= 0 for number in seen)


def test_faces_are_those_of_their_names(folder: Path) -> None:
    stream = loader(config(str(folder)))
    batch = stream.batch(0, 0)
    for number, face in zip(batch.ids.tolist(), batch.face, strict=True):
        shard, sample = stream.source.key(number).split(": s")[1]
        drawn = torch.from_numpy(picture(8 * int(shard) + int(sample), 40, 40)).float().permute(2, 0, 1)[None]
        small = torch.nn.functional.interpolate(drawn, (16, 16), mode="area")[0]
        assert (small - face).abs().mean() < 15
    assert stream.source.batch_ids(0)[0].tolist() == batch.ids.tolist()
    stream.close()


def test_processes_and_starts_draw_differently_but_not_by_chance(folder: Path) -> None:
    data = config(str(folder))
    assert ids(data) == ids(data)
    assert ids(data) != ids(data, rank=1)
    assert ids(data) != ids(data, start=15)


def test_ids_do_not_depend_on_where_the_shards_lie(folder: Path, server: Served) -> None:
    assert ids(config(str(folder))) == ids(config(server.url + "/faces-{000..004}.tar?signature=x"))


def test_its_promises_are_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loader(config(str(folder)), 1, 2).close()
        assert not caplog.text
        loader(config(str(folder)), 0, 2).close()
    for words in ("with replacement", "no epochs", "A resumed run", "exact order and resume"):
        assert words in caplog.text


def test_shards_that_fail_are_passed_over(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    server.cut.add("faces-001.tar")
    server.fails["faces-002.tar"] = 10**9
    stream = loader(config(server.url + "/faces-{000..004}.tar"))
    with caplog.at_level(logging.WARNING):
        assert len(take(stream, 0, 40)) == 40
    assert "shard skipped" in caplog.text
    assert isinstance(stream.source, ResampledStream)
    assert stream.source.skipped > 1
    server.fails.update({f"faces-{number:03d}.tar": 10**9 for number in range(5)})
    with pytest.raises(UserError, match=f"{resampled.FAILURES} consecutive shards"):
        take(loader(config(server.url + "/faces-{000..004}.tar")), 0, 1)


def test_manifests_name_the_shards_of_the_chosen_splits(tmp_path: Path) -> None:
    folder = drawn_corpus(tmp_path / "shards")
    expected = tuple(str(folder / f"train-00000{number}.tar") for number in (0, 1, 3))
    assert expand([str(folder)], ["train"]) == expected
    with served(folder) as state:
        urls = expand([state.url], ["test"])
        assert urls == (f"{state.url}/test-000002.tar",)


def test_names_tell_the_splits_where_there_is_no_manifest(tmp_path: Path) -> None:
    for name in ("rafdb-test-000000", "rafdb-train-000000", "rafdb-000001"):
        (tmp_path / f"{name}.tar").touch()
    assert [Path(tar).stem for tar in expand([str(tmp_path)], ["train"])] == ["rafdb-000001", "rafdb-train-000000"]
    assert [Path(tar).stem for tar in expand([str(tmp_path)], ["test"])] == ["rafdb-test-000000"]
    assert len(expand([str(tmp_path)], [])) == 3
    with pytest.raises(UserError, match="no shards to stream"):
        expand([str(tmp_path)], ["val"])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("pipe:cat /etc/passwd > {mark}", "is not a folder|contains no"),
        ("pipe:curl http://x/{mark}.tar", "is not allowed"),
        ("ftp://host/x.tar", "is not allowed"),
        ("nowhere/{{000..002}}.tar", "nowhere/000.tar does not exist"),
    ],
)
def test_no_commands_and_no_other_schemes(tmp_path: Path, place: str, words: str) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(UserError, match=words):
        ResampledStream(config(place.format(mark=mark)), 0, 4, 0)
    assert not mark.exists()


def test_a_tar_is_opened_by_us_and_by_no_shell(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name webdataset's own opener would run."""
    mark = tmp_path / "mark"
    bad = tmp_path / f"pipe:touch {mark.name}; cat x.tar"
    bad.write_bytes(next(folder.glob("*.tar")).read_bytes())
    monkeypatch.chdir(tmp_path)
    stream = loader(config(bad.name))
    assert stream.batch(0, 0).ids.shape == (4,)
    stream.close()
    assert not mark.exists()


def test_a_stream_needs_a_number_of_steps() -> None:
    with pytest.raises(UserError, match=r"data\.resampled=true: .* train\.steps"):
        check(PretrainConfig(data=DataConfig(shards=["x"], resampled=True)))


def test_compressed_tars_can_be_streamed(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with webdataset.TarWriter(stream, compress=True) as writer:
        for number in range(8):
            writer.write({"__key__": f"s{number}", "jpg": jpeg(picture(number, 40, 40))})
    (tmp_path / "a.tar.gz").write_bytes(stream.getvalue())
    assert len(take(loader(config(str(tmp_path / "a.tar.gz"))), 0, 5)) == 5
