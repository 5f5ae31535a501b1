"""Betons contain the shards' own samples, and all loaders return equal crops of the same images in the same order.

Tolerances on uint8 of sharp-edged images: FFCV decodes with libjpeg-turbo's fast DCT, DALI resizes differently.
"""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.eval_fixtures import CLASSES, MakeShards

from simfle.data.backends.jpeg_header import size
from simfle.errors import UserError
from simfle.eval.data.splits import Split, read_split
from simfle.eval.features.decoders import DecoderPool
from simfle.eval.features.extractor import Augment, Extractor
from simfle.eval.features.ffcv_format import find_ffcv_files, load_ffcv, metadata_file, write_ffcv

# Not by importorskip: importing ffcv directly sets torch to one thread.
needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is optional: docs/evaluation.md")
ROWS = np.array([3, 17, 0, 5, 11, 5, 20, 1])  # with one repeated row
CROPS = Augment(3, 1, (0.2, 1.0), 0.4)


@pytest.fixture
def threads() -> Iterator[int]:
    """Keep torch's number of threads, which FFCV would set."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def show(loaders: DecoderPool, split: Split, side: int, augment: Augment | None, threads: int = 1) -> torch.Tensor:
    extractor = Extractor(side, 3, torch.device("cpu"), threads, decoders=loaders)
    return torch.cat(list(extractor.images(split.source, ROWS, augment))).int()


def differences(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Return the largest mean and the largest 99th percentile of the differences per image, in gray levels."""
    found = (a - b).abs().flatten(1).float()
    return found.mean(1).max().item(), found.quantile(0.99, dim=1).max().item()


@needs_ffcv
@pytest.mark.parametrize(("side", "augment"), [(32, None), (64, CROPS)], ids=["whole", "crops, colors"])
def test_ffcv_shows_what_opencv_shows(
    make_shards: MakeShards, tmp_path: Path, threads: int, side: int, augment: Augment | None
) -> None:
    shards = make_shards({"train": [7, 7, 7]})
    write_ffcv(shards, tmp_path / "a.beton", "train")
    split = read_split([str(shards)], "train")
    expected = show(DecoderPool("opencv"), split, side, augment)
    loaders = DecoderPool("ffcv", (str(tmp_path / "a.beton"),))
    found = show(loaders, split, side, augment)
    mean, most = differences(found, expected)
    assert mean < 2
    assert most <= 10
    assert differences(found.flip(0), expected)[0] > 20  # wrong images differ strongly
    assert differences(found.flip(3), expected)[0] > 8  # and so does a mirrored one
    assert torch.equal(show(loaders, split, side, augment), found)
    assert torch.get_num_threads() == threads
    if augment:  # compiled again for several threads
        assert torch.equal(show(loaders, split, side, augment, threads=2), found)


@pytest.mark.parametrize(("side", "augment"), [(32, None), (40, CROPS)], ids=["whole", "crops, colors"])
def test_dali_shows_what_opencv_shows(make_shards: MakeShards, side: int, augment: Augment | None) -> None:
    pytest.importorskip("nvidia.dali")
    split = read_split([str(make_shards({"train": [7, 7, 7]}))], "train")
    expected = show(DecoderPool("opencv"), split, side, augment)
    found = show(DecoderPool("dali"), split, side, augment)
    assert differences(found, expected)[0] < 8
    assert differences(found.flip(0), expected)[0] > 20


@needs_ffcv
def test_a_beton_holds_the_shards_bytes_labels_ids_and_keys(make_shards: MakeShards, tmp_path: Path) -> None:
    shards, file = make_shards({"val": [2, 2, 2], "train": [5, 6, 7]}), tmp_path / "a.beton"
    told: list[tuple[int, int]] = []
    about = write_ffcv(shards, file, "train", lambda *done: told.append(done))
    split = read_split([str(shards)], "train")
    assert (about.samples, tuple(about.classes), about.corpus, told[-1]) == (18, CLASSES, "shapes", (18, 18))
    assert split.ids[0] == 6  # ids also count the other split
    content = file.read_bytes()
    read = load_ffcv("ffcv.reader").Reader(str(file))
    lengths = dict(zip(read.alloc_table["ptr"].tolist(), read.alloc_table["size"].tolist(), strict=True))

    def stored(pointer: int) -> bytes:
        return content[pointer : pointer + lengths[pointer]]

    assert read.field_names == ["image", "label", "id", "key"]
    assert [int(row["f1"]) for row in read.metadata] == split.labels.tolist()
    assert [int(row["f2"]) for row in read.metadata] == split.ids.tolist()
    assert [stored(int(row["f3"]["ptr"])).decode() for row in read.metadata] == list(split.keys)
    for row, image in enumerate(read.metadata["f0"]):
        jpeg = split.source.corpus.read_image(int(split.source.shards[row]), int(split.source.samples[row]))
        assert stored(int(image["data_ptr"])) == jpeg.tobytes()
        assert (int(image["height"]), int(image["width"])) == size(jpeg) == (48, 64)
    write_ffcv(shards, tmp_path / "b.beton", "train")
    assert (tmp_path / "b.beton").read_bytes() == content
    assert sorted(path.name for path in tmp_path.glob("*beton*")) == [
        "a.beton", "a.beton.json", "b.beton", "b.beton.json"
    ]  # fmt: skip


@needs_ffcv
def test_a_damaged_image_is_named(make_shards: MakeShards) -> None:
    shards = make_shards({"train": [7, 7, 7]})
    file = shards / "train.beton"
    write_ffcv(shards, file, "train")
    split = read_split([str(shards)], "train")
    jpeg = split.source.corpus.read_image(int(split.source.shards[5]), int(split.source.samples[5])).tobytes()
    content = file.read_bytes()
    assert content.count(jpeg) == 1
    file.write_bytes(content.replace(jpeg, bytes(len(jpeg))))
    with pytest.raises(UserError, match=f"{split.keys[5]} cannot be decoded"):
        show(DecoderPool("auto"), split, 32, None)


@needs_ffcv
def test_a_beton_serves_the_samples_that_it_was_made_of(make_shards: MakeShards, tmp_path: Path) -> None:
    shards = make_shards({"train": [3, 3, 3], "val": [2, 2, 2]})
    write_ffcv(shards, shards / "train.beton", "train")
    train, val = (read_split([str(shards)], name) for name in ("train", "val"))
    other = read_split([str(make_shards({"train": [3, 3, 4]}, "other"))], "train")
    assert DecoderPool("auto").name(train.source) == "ffcv"
    assert DecoderPool("auto").name(val.source) == "opencv"
    assert DecoderPool("auto", (str(shards),)).name(other.source) == "opencv"
    assert DecoderPool("opencv", (str(shards),)).name(train.source) == "opencv"
    with pytest.raises(UserError, match=r"no beton of split 'val' .* simfle shards ffcv"):
        DecoderPool("ffcv").name(val.source)
    with pytest.raises(UserError, match="no split 'test'"):
        write_ffcv(shards, tmp_path / "a.beton", "test")
    unlabeled = make_shards({"train": [2, 2, 2]}, "unlabeled", labeled=False)
    with pytest.raises(UserError, match="has no labels"):
        write_ffcv(unlabeled, tmp_path / "a.beton", "train")
    with (shards / "train.beton").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="build it again"):
        DecoderPool("auto").name(train.source)


def test_betons_that_are_missing_or_damaged_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Fix: run simfle shards ffcv"):
        find_ffcv_files([tmp_path / "none.beton"])
    file = tmp_path / "a.beton"
    file.write_bytes(b"something")
    assert find_ffcv_files([tmp_path]) == {}  # incomplete
    for text in ("{", '{"format": 1}', "[]"):
        metadata_file(file).write_text(text)
        with pytest.raises(UserError, match=r"a.beton.json is corrupt .* Fix: build the beton again"):
            find_ffcv_files([tmp_path])


def test_without_ffcv_it_is_said_how_to_get_it(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards({"train": [2, 2, 2]})
    monkeypatch.setitem(sys.modules, "ffcv", None)  # Python treats None as not installed
    with pytest.raises(UserError, match=r"ffcv cannot be imported .* docs/evaluation.md, or set decoder=opencv"):
        write_ffcv(shards, tmp_path / "a.beton", "train")
    with pytest.raises(UserError, match="ffcv cannot be imported"):
        load_ffcv("ffcv")
    assert not list(tmp_path.glob("*.beton*"))
