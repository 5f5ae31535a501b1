"""Compute features of a folder, shards, or images in memory, as arrays or as a file with keys."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shards.format.manifest import NAME
from shards.io.atomic import expand_home, write_atomic
from shards.reading.dataset import ShardDataset, split_names
from simfle.api.backbone import Backbone, each, load_backbone, pixels, read_image, resize
from simfle.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
FORMATS = (".npz", ".parquet")
THREADS = 4


def embed(
    data: Any,
    backbone: "Backbone | str | Path",
    out: str | Path | None = None,
    *,
    splits: str | Sequence[str] | None = None,
    batch: int = 64,
    device: str = "auto",
) -> "dict[str, NDArray[Any]]":
    """Compute the features of every image in `data`, in order.

    Args:
        data: a folder of shards, any folder of images (flat or nested), or the input of a backbone: a PIL image, a
            uint8 array, a tensor, a file path, or several of them.
        backbone: input or result of `load_backbone`.
        out: .npz or .parquet file to write the results to.
        splits: one or several splits of shards (default: all).
        batch: images per forward pass.

    Returns:
        keys [n] (of the shards' samples; for a folder, paths; otherwise 0, 1, ...) and features [n, C] float32; for
        shards also splits [n] and labels [n] (names, "" without one). Unreadable images in a folder are skipped and
        logged.

    Raises:
        UserError: no such data or backbone, no image in it, or a file name that ends in neither .npz nor .parquet.
    """
    target = expand_home(out) if out is not None else None
    if target is not None and target.suffix not in FORMATS:
        raise UserError(f"out={target}: unknown format. Fix: use a name that ends in {' or '.join(FORMATS)}.")
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1. Fix: raise it.")
    model = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, device)
    known: dict[str, list[Any]] = {}
    features = []
    for rows in _batches(_samples(data, split_names(splits), model.size), batch):
        images = torch.from_numpy(np.stack([row.pop("image") for row in rows])).permute(0, 3, 1, 2)  # [b, 3, S, S]
        features.append(model(images).cpu().numpy())
        for row in rows:
            for name, value in row.items():
                known.setdefault(name, []).append(value)
    if not features:
        raise UserError(
            f"embed: no image in {data if isinstance(data, str | Path) else 'the data'} could be read. "
            "Fix: give other images."
        )
    found = {name: np.array(values) for name, values in known.items()} | {"features": np.concatenate(features)}
    if target is not None:
        write(target, found)
    return found


def write(file: Path, found: "dict[str, NDArray[Any]]") -> None:
    """Write arrays of equal length as .npz (without pickle) or .parquet (features as a column of lists)."""
    import io

    content = io.BytesIO()
    if file.suffix == ".npz":
        np.savez(content, allow_pickle=False, **found)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        features = pa.FixedSizeListArray.from_arrays(pa.array(found["features"].ravel()), found["features"].shape[1])
        columns = {name: pa.array(values.tolist()) for name, values in found.items() if name != "features"}
        parquet.write_table(pa.table(columns | {"features": features}), content)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content.getvalue())
    except OSError as error:
        raise UserError(f"out={file}: cannot be written: {error.strerror}. Fix: choose another file.") from None


def _samples(data: Any, splits: Sequence[str], size: int) -> Iterator[dict[str, Any]]:
    """Yield one dict per sample: keys and similar fields, and image [S, S, 3] uint8."""
    if isinstance(data, str | Path):
        data = expand_home(data)
    if isinstance(data, ShardDataset) or (isinstance(data, Path) and (data / NAME).is_file()):
        if splits and isinstance(data, ShardDataset):
            raise UserError(
                f"embed: splits={list(splits)}: the shards are already open. Fix: pass splits to shards.open."
            )
        shards = data if isinstance(data, ShardDataset) else ShardDataset(data, splits)
        return _parallel(lambda number: _of_shards(shards, number, size), range(len(shards)))
    if splits:
        raise UserError(f"embed: splits={list(splits)}: only shards have splits. Fix: remove splits.")
    if isinstance(data, Path) and not data.is_file():
        folder, names = data, _names(data)
        return _parallel(lambda name: _of_file(folder, name, size), names)
    return ({"keys": number, "image": resize(pixels(image), size)} for number, image in enumerate(each(data)))


def _names(folder: Path) -> list[str]:
    from shards.sources.generic.folder import EXTENSIONS, walk

    if "://" in str(folder):
        raise UserError(f"embed: {folder} is a URL. Fix: copy the shards to a local folder.")
    if not folder.is_dir():
        raise UserError(f"embed: {folder} is not a folder. Fix: name shards or a folder of images, or give images.")
    names = [name for name in walk(folder) if Path(name).suffix.lower() in EXTENSIONS]
    if not names:
        raise UserError(f"embed: no images in {folder}. Fix: name a folder of images.")
    return names


def _of_shards(shards: ShardDataset, number: int, size: int) -> dict[str, Any]:
    item = shards[number]
    return {"keys": item.key, "splits": item.split, "labels": item.label, "image": resize(item.image, size)}


def _of_file(folder: Path, name: str, size: int) -> dict[str, Any] | None:
    try:
        return {"keys": name, "image": resize(read_image(folder / name), size)}
    except UserError as error:
        log.warning("skipped: %s", error)
        return None


def _parallel(read: Any, places: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Decode on a few threads, in order, at most one batch ahead."""
    with ThreadPoolExecutor(THREADS) as pool:
        rest = iter(places)
        while some := list(islice(rest, 16 * THREADS)):
            yield from (row for row in pool.map(read, some) if row is not None)


def _batches(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(rows, size)):
        yield some
