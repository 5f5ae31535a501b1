"""FFCV's .beton files of labelled splits: written from shards, and found again by what they hold.

The JPEGs are stored as they lie in the shards: FFCV's own image field would encode them again. Beside NAME.beton lies
NAME.beton.json, written last, which says of which samples it is. FFCV is optional and imported here only when needed.
"""

# n samples
import importlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.files import open_regular, read_bytes, replacing, write_atomic
from shards.plain import build
from shards.redact import to_json
from simfle.data.jpeg import size
from simfle.errors import UserError
from simfle.eval.splits import Source, Split, read_split

log = logging.getLogger(__name__)

FORMAT = 1
PAGE = 1 << 23  # bytes of a beton's page, FFCV's default; a sample cannot be larger
Progress = Callable[[int, int], None]
_JPEG_MODE = 0  # FFCV's mark of an image that is stored as a JPEG


@dataclass(frozen=True)
class About:
    """What a beton holds. source: `Source.digest` of its samples; bytes: of the file."""

    format: int
    source: str
    corpus: str
    terms: str
    split: str
    classes: list[str]
    samples: int
    bytes: int


def load_ffcv(name: str) -> Any:
    """Import a module that needs FFCV. FFCV sets torch to one thread when it is imported; that is undone.

    Raises:
        UserError: FFCV is not installed.
    """
    threads = torch.get_num_threads()
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library of its own is missing
        raise UserError(
            f"ffcv is not installed ({error}); how to is in docs/evaluation.md, or use loader=opencv"
        ) from None
    finally:
        torch.set_num_threads(threads)


def about_file(beton: Path) -> Path:
    """Where it is said what a beton holds."""
    return beton.with_name(beton.name + ".json")


def build_beton(shards: Path, out: Path, name: str, progress: Progress = lambda *_: None) -> About:
    """Write the labelled samples of split `name` to `out`: fields image, label, id (the global sample id) and key.

    Atomic: a build that is interrupted leaves nothing that is taken for a beton. progress: told how many are written,
    of how many.

    Raises:
        UserError: FFCV is not installed, shards missing or damaged, unknown split, no labels, an image that is no JPEG
            or larger than a page, a file that cannot be written.
    """
    load_ffcv("ffcv")
    split = read_split([str(shards)], name)
    try:
        about_file(out).unlink(missing_ok=True)
        with replacing(out) as file:
            _write(Path(file.name), split, progress)
        manifest = split.source.corpus.manifests[0]
        about = About(
            FORMAT,
            split.source.digest,
            manifest.corpus,
            manifest.terms,
            name,
            list(split.classes),
            len(split),
            out.stat().st_size,
        )
        write_atomic(about_file(out), to_json(asdict(about), indent=1).encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return about


def _write(path: Path, split: Split, progress: Progress) -> None:
    """All steps of FFCV's writer in this process: where one of its worker processes fails, it waits for ever."""
    kinds, writing = load_ffcv("ffcv.fields"), load_ffcv("ffcv.writer")
    image = kinds.RGBImageField(write_mode="jpg")
    image.encode = _store
    fields = {"image": image, "label": kinds.IntField(), "id": kinds.IntField(), "key": kinds.BytesField()}
    writer = writing.DatasetWriter(str(path), fields, page_size=PAGE, num_workers=1)
    writer.num_samples = len(split)
    writer.prepare()
    writer.metadata_sm.close()  # memory that its workers would share
    writer.metadata_sm.unlink()
    table = np.zeros(len(split), writer.metadata_type)
    allocator = writing.MemoryAllocator(str(path), writer.data_region_start, PAGE)
    with allocator:
        for place, (row, label, key) in enumerate(zip(split.rows, split.labels, split.keys, strict=True)):
            content = _image(split.source, int(row), key)
            name = np.frombuffer(key.encode(), np.uint8)
            values = content, int(label), int(split.source.ids[row]), name
            writing.handle_sample(values, place, table.dtype.names, table, allocator, fields)
            progress(place + 1, len(split))
    writer.metadata_sm = SimpleNamespace(buf=table.tobytes())
    writer.finalize(allocator.allocations)


def _store(destination: NDArray, content: NDArray[np.uint8], malloc: Callable[[int], tuple[int, NDArray]]) -> None:
    """`encode` of FFCV's image field, for a JPEG [bytes] that stays as it is."""
    destination["mode"] = _JPEG_MODE
    destination["height"], destination["width"] = size(content) or (0, 0)
    destination["data_ptr"], place = malloc(content.nbytes)
    place[:] = content


def _image(source: Source, row: int, key: str) -> NDArray[np.uint8]:
    """The JPEG [bytes] of one sample."""
    shard, sample = int(source.shards[row]), int(source.samples[row])
    content = source.corpus.image(shard, sample)
    name = f"shards: {source.corpus.tar(shard)}: {key}"
    if content[:2].tobytes() != b"\xff\xd8" or size(content) is None:
        raise UserError(f"{name} is no JPEG; FFCV reads nothing else")
    if content.nbytes + len(key.encode()) > PAGE:
        raise UserError(f"{name} has {content.nbytes} bytes, a page of a beton {PAGE}; build shards of smaller images")
    return content


def find_betons(places: Sequence[str | Path]) -> dict[str, Path]:
    """Betons by the digest of the source whose samples they hold; places: files, or folders that they lie in.

    Raises:
        UserError: a file that is not there, or damaged.
    """
    found = {}
    for place in map(Path, places):
        for beton in sorted(place.glob("*.beton")) if place.is_dir() else [place]:
            if place.is_dir() and not about_file(beton).is_file():
                log.warning("%s was not finished; make it again with simfle shards beton", beton)
                continue
            found[_read_about(beton).source] = beton
    return found


def _read_about(beton: Path) -> About:
    try:
        about = build(About, read_bytes(about_file(beton)))
        with open_regular(beton, "rb") as file:
            actual = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"betons: {error.filename}: {error.strerror}; make it with simfle shards beton") from None
    except ValueError as error:
        raise UserError(f"betons: {about_file(beton)} is damaged ({error}); build the beton again") from None
    if about.format != FORMAT or about.bytes != actual:
        raise UserError(
            f"betons: {beton} has {actual} bytes and format {about.format}, not {about.bytes} and {FORMAT}; "
            "build it again"
        )
    return about
