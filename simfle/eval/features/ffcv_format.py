"""FFCV's .beton files of labeled splits: write them from shards, and match them to shards by content.

JPEGs are stored as they are in the shards, because FFCV's own image field would re-encode them. NAME.beton.json beside
NAME.beton is written last and identifies its samples. FFCV is optional and imported only when needed.
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

from shards.io.atomic import open_regular, read_bytes, replacing, write_atomic
from shards.io.jsonl import dataclass_from_json
from shards.redact import to_json
from simfle.data.backends.jpeg_header import size
from simfle.errors import UserError
from simfle.eval.data.splits import Split, SplitSource, read_split

log = logging.getLogger(__name__)

FORMAT = 1
PAGE = 1 << 23  # bytes of a beton page, FFCV's default; the maximum size of a sample
Progress = Callable[[int, int], None]
_JPEG_MODE = 0  # FFCV's mode for an image stored as JPEG


@dataclass(frozen=True)
class BetonMetadata:
    """Metadata of a beton. source: `Split.digest` of its samples; bytes: size of the file."""

    format: int
    source: str
    corpus: str
    terms: str
    split: str
    classes: list[str]
    samples: int
    bytes: int


def load_ffcv(name: str) -> Any:
    """Import a module that needs FFCV, and restore torch's number of threads, which the import sets to one.

    Raises:
        UserError: If FFCV is not installed.
    """
    threads = torch.get_num_threads()
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library of FFCV is missing
        raise UserError(
            f"ffcv cannot be imported ({error}). Fix: install it as in docs/evaluation.md, or set decoder=opencv."
        ) from None
    finally:
        torch.set_num_threads(threads)


def metadata_file(beton: Path) -> Path:
    """Return the metadata file of a beton."""
    return beton.with_name(beton.name + ".json")


def write_ffcv(shards: Path, out: Path, name: str, progress: Progress = lambda *_: None) -> BetonMetadata:
    """Write the labeled samples of split `name` to `out`: fields image, label, id (the global sample id) and key.

    The write is atomic: an interrupted build leaves no file that is accepted as a beton. progress is called with the
    numbers of written and of all samples.

    Raises:
        UserError: If FFCV is not installed, shards are missing or corrupt, the split is unknown or has no labels, an
            image is not a JPEG or is larger than a page, or a file cannot be written.
    """
    load_ffcv("ffcv")
    split = read_split([str(shards)], name)
    try:
        metadata_file(out).unlink(missing_ok=True)
        with replacing(out) as file:
            _write(Path(file.name), split, progress)
        manifest = split.source.corpus.manifests[0]
        about = BetonMetadata(
            FORMAT,
            split.source.digest,
            manifest.corpus,
            manifest.terms,
            name,
            list(split.classes),
            len(split),
            out.stat().st_size,
        )
        write_atomic(metadata_file(out), to_json(asdict(about), indent=1).encode())
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}. Fix: choose another file.") from None
    return about


def _write(path: Path, split: Split, progress: Progress) -> None:
    """Run all steps of FFCV's writer in this process, because FFCV waits forever for a failed worker process."""
    kinds, writing = load_ffcv("ffcv.fields"), load_ffcv("ffcv.writer")
    image = kinds.RGBImageField(write_mode="jpg")
    image.encode = _store
    fields = {"image": image, "label": kinds.IntField(), "id": kinds.IntField(), "key": kinds.BytesField()}
    writer = writing.DatasetWriter(str(path), fields, page_size=PAGE, num_workers=1)
    writer.num_samples = len(split)
    writer.prepare()
    writer.metadata_sm.close()  # shared memory for its workers
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
    """Store a JPEG [bytes] unchanged, instead of the `encode` of FFCV's image field."""
    destination["mode"] = _JPEG_MODE
    destination["height"], destination["width"] = size(content) or (0, 0)
    destination["data_ptr"], place = malloc(content.nbytes)
    place[:] = content


def _image(source: SplitSource, row: int, key: str) -> NDArray[np.uint8]:
    """Return the JPEG [bytes] of one sample."""
    shard, sample = int(source.shards[row]), int(source.samples[row])
    content = source.corpus.read_image(shard, sample)
    name = f"shards: {source.corpus.shard_location(shard)}: {key}"
    if content[:2].tobytes() != b"\xff\xd8" or size(content) is None:
        raise UserError(f"{name} is not a JPEG, the only format that FFCV reads. Fix: evaluate with decoder=opencv.")
    if content.nbytes + len(key.encode()) > PAGE:
        raise UserError(
            f"{name} has {content.nbytes} bytes, more than a beton page of {PAGE}. Fix: build shards of smaller images."
        )
    return content


def find_ffcv_files(places: Sequence[str | Path]) -> dict[str, Path]:
    """Return betons by the digest of their source. `places` are files, or folders that contain betons.

    Raises:
        UserError: If a file is missing or corrupt.
    """
    found = {}
    for place in map(Path, places):
        for beton in sorted(place.glob("*.beton")) if place.is_dir() else [place]:
            if place.is_dir() and not metadata_file(beton).is_file():
                log.warning("%s is incomplete; rerun simfle shards ffcv", beton)
                continue
            found[_read_metadata(beton).source] = beton
    return found


def _read_metadata(beton: Path) -> BetonMetadata:
    try:
        about = dataclass_from_json(BetonMetadata, read_bytes(metadata_file(beton)))
        with open_regular(beton, "rb") as file:
            actual = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"ffcv_files: {error.filename}: {error.strerror}. Fix: run simfle shards ffcv.") from None
    except ValueError as error:
        raise UserError(
            f"ffcv_files: {metadata_file(beton)} is corrupt ({error}). Fix: build the beton again."
        ) from None
    if about.format != FORMAT or about.bytes != actual:
        raise UserError(
            f"ffcv_files: {beton} has {actual} bytes and format {about.format}, not {about.bytes} and {FORMAT}. "
            "Fix: build it again."
        )
    return about
