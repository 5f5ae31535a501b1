"""Folders of tars that webdataset's ShardWriter and img2dataset wrote, read as they are."""

import io
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.data_fixtures import jpeg, picture
from helpers.loader_cases import CPU, DATA, VIEWS, take
from PIL import Image

from shards.format import external_tars
from simfle.config.schema import ViewsConfig
from simfle.data.backends.dali import Dali
from simfle.data.backends.opencv import OpenCV
from simfle.data.dataset import ShardCorpus
from simfle.data.loader import Loader, RankSlice
from simfle.data.training_data import OrderedShards, make_sampler
from simfle.data.views import sample_view_params
from simfle.errors import UserError

webdataset = pytest.importorskip("webdataset")


def encoded(seed: int, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(seed, 60, 48)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """By ShardWriter: 3 tars of 4 samples; jpg, png, webp and jpeg in turn; labels 0, 1, 2; nested keys."""
    folder = tmp_path / "written"
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/train-%06d.tar", maxcount=4, verbose=0) as writer:
        for number in range(12):
            name, kind = (("jpg", "jpeg"), ("png", "png"), ("webp", "webp"), ("jpeg", "jpeg"))[number % 4]
            sample = {"__key__": f"faces/s{number:03d}", "cls": number % 3, "json": {"number": number}}
            writer.write(sample | {name: encoded(number, kind)})
    return folder


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """As img2dataset writes: keys of nine digits, txt and json, a parquet and a stats file beside each tar."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number in range(5):
                key = f"{shard:05d}{number:04d}"
                known = {"caption": f"face {number}", "url": "https://host/x.jpg", "key": key, "status": "success"}
                content = jpeg(picture(shard * 5 + number, 40, 50))
                writer.write({"__key__": key, "jpg": content, "txt": known["caption"], "json": known})
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 6, "successes": 5}))
    return folder


def test_what_shard_writer_writes_is_read_as_it_is(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        corpus = ShardCorpus([written], ["train"])
    assert "no manifest: 3 tars indexed temporarily, 12 samples, skipped: nothing" in caplog.text
    assert corpus.counts.tolist() == [4, 4, 4]
    assert corpus.labels == ("0", "1", "2")
    for number in range(12):
        place = divmod(number, 4)
        image = cv2.imdecode(corpus.read_image(*place), cv2.IMREAD_COLOR_RGB)
        assert np.abs(image.astype(float) - picture(number, 60, 48)).mean() < 12
        assert corpus.key(*place) == f"faces/s{number:03d}"
        assert corpus.label(*place) == number % 3
        assert corpus.metadata(*place) == {"number": number}


def test_what_img2dataset_writes_is_read_as_it_is(downloaded: Path) -> None:
    corpus = ShardCorpus([downloaded])
    assert len(corpus) == 10
    assert corpus.key(1, 2) == "000010002"
    assert corpus.metadata(1, 2)["text"] == corpus.metadata(1, 2)["caption"] == "face 2"
    assert corpus.read_image(1, 2).tobytes() == jpeg(picture(7, 40, 50))
    assert corpus.label(0, 0) is None
    assert corpus.labels == ()
    batches = take(Loader(OrderedShards(corpus, make_sampler(corpus, DATA, 0, 8)), VIEWS, DATA, RankSlice(), CPU), 0, 3)
    assert all(int(batch.view1.max()) > 0 for batch in batches)


@pytest.mark.parametrize("backend", ["opencv", "dali"])
def test_both_backends_decode_what_is_no_jpeg(backend: str) -> None:
    kinds: list[tuple[str, dict]] = [("jpeg", {"quality": 98}), ("png", {}), ("webp", {"lossless": True})]
    images = [np.frombuffer(encoded(5, kind, **options), np.uint8) for kind, options in kinds]
    for mode in ("L", "RGBA", "P"):
        stream = io.BytesIO()
        Image.fromarray(picture(5, 60, 48)).convert(mode).save(stream, "png")
        images.append(np.frombuffer(stream.getvalue(), np.uint8))
    views = ViewsConfig(size=32, face_size=24)
    maker = OpenCV(views, 1) if backend == "opencv" else Dali(views, 1, len(images), torch.device("cpu"))
    rendered = maker.render(
        images, sample_view_params(0, 0, np.zeros(len(images), np.int64), views)
    )  # one draw for all
    maker.close()
    assert not rendered.corrupt
    for output in (rendered.view1, rendered.view2, rendered.face):
        pixels = output.float()
        assert (pixels[:3] - pixels[0]).abs().mean() < 2
        assert (pixels[4] - pixels[1]).abs().mean() == 0  # an opaque alpha channel changes nothing
        assert (pixels[5] - pixels[1]).abs().mean() < 25  # 256 colors


def test_what_cannot_be_used_is_counted_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "val-00.tar")) as writer:
        writer.write({"__key__": "a", "JPG": jpeg(picture(0, 20, 20)), "cls": b"happy"})
        writer.write({"__key__": "b", "json": {"only": "text"}})
        writer.write({"__key__": "c", "jpg": b""})
        writer.write({"__key__": "d", "jpg": b"GIF89a not one of ours"})
        writer.write({"__key__": "e", "png": encoded(1, "png"), "cls": b"2"})
        writer.write({"__key__": "f", "gif": b"GIF89a"})
    manifest = external_tars.infer_manifest(folder)
    assert manifest.rejected == {"empty": 1, "no_image": 2, "not_an_image": 1}
    assert manifest.entries == 6
    assert manifest.splits == ("val",)
    assert manifest.labels == ()  # not all of them are numbers
    corpus = ShardCorpus([folder], ["val"])
    assert [corpus.key(0, n) for n in range(2)] == ["a", "e"]
    assert corpus.read_image(0, 1).tobytes() == encoded(1, "png")
    (folder / "val-00.idx").write_text("v1.2 1\njpg 0 10 wrong.jpg\n")  # someone else's index is not believed
    assert ShardCorpus([folder], ["val"]).key(0, 1) == "e"


def test_the_digest_follows_the_content(written: Path) -> None:
    first = ShardCorpus([written]).digest()
    assert ShardCorpus([written]).digest() == first
    (written / "train-000002.tar").unlink()
    assert ShardCorpus([written]).digest() != first


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no manifest"):
        ShardCorpus([tmp_path / "empty"])
    with webdataset.TarWriter(str(tmp_path / "empty" / "0.tar")) as writer:
        writer.write({"__key__": "a", "txt": "no image"})
    with pytest.raises(UserError, match="no sample in its tars has an image"):
        ShardCorpus([tmp_path / "empty"])
    (tmp_path / "empty" / "1.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(UserError, match=r"1\.tar cannot be indexed"):
        ShardCorpus([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("name", "split"),
    [("00000.tar", "train"), ("val-000000.tar", "val"), ("validation_1.tar", "val"), ("test.tar", "test"),
     ("testament-1.tar", "train"), ("faces-test-0.tar", "test"), ("TRAIN-0.tar", "train"), ("dev-000000.tar", "val"),
     ("testing-000000.tar", "test"), ("imagenet-val-000000.tar", "val"), ("val2017_00.tar", "val"),
     ("test-of-time-train-0.tar", "train"), ("contest-0.tar", "train"), ("faces.validation.00.tar", "val")],
)  # fmt: skip
def test_splits_from_names(name: str, split: str) -> None:
    assert external_tars.split_from_name(name) == split
