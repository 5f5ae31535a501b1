"""Compute features of a folder, shards, or images in memory, as arrays or as a file with paths, keys and labels."""

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shards.format.manifest import NAME
from shards.io.atomic import expand_home, write_atomic
from shards.reading.dataset import ShardDataset, split_names
from simfle.api.backbone import Backbone, each, load_backbone, read_image
from simfle.errors import UserError
from simfle.eval.features.resize import resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
FORMATS = (".npz", ".parquet", ".csv")
COLUMNS = ("path", "key", "split", "label", "person")
THREADS = 4


def embed(
    data: Any,
    backbone: "Backbone | str | Path",
    out: str | Path | None = None,
    *,
    splits: str | Sequence[str] | None = None,
    batch: int = 64,
    device: str | torch.device = "auto",
) -> "dict[str, NDArray[Any]]":
    """Compute the features of every image in `data`, in order.

    Args:
        data: a folder of shards, any folder of images (flat or nested), or the input of a backbone: a PIL image, a
            uint8 array, a tensor, a file path, or several of them.
        backbone: input or result of `load_backbone`.
        out: .npz, .parquet or .csv file to write the results to.
        splits: one or several splits of shards (default: all).
        batch: images per forward pass.
        device: see `load_backbone`; a loaded backbone keeps its device.

    Returns:
        Columns [n] and features [n, C] float32. path: path of the image, relative to the folder; for shards, path of
        its source, relative to the folder that was built. key: key in the shards, or path in a folder, otherwise 0, 1,
        .... split, label and person: names in the shards. Unknown values are "". Unreadable images in a folder are
        skipped and logged.

    Raises:
        UserError: If the data or the backbone does not exist, the data contain no image, or the file name has another
            ending.
    """
    target = expand_home(out) if out is not None else None
    if target is not None:
        check_format(target)
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1. Fix: raise it.")
    model = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, device)
    known: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    features = []
    with torch.no_grad(), _eval_mode(model):
        for rows in _batches(_samples(data, split_names(splits), model.size), batch):
            features.append(model([row.pop("image") for row in rows]).cpu().numpy())
            for row in rows:
                for name, values in known.items():
                    values.append(row.get(name, ""))
    if not features:
        raise UserError(
            f"embed: no image in {data if isinstance(data, str | Path) else 'the data'} could be read. "
            "Fix: pass other images."
        )
    found = {name: np.array(values) for name, values in known.items()} | {"features": np.concatenate(features)}
    if target is not None:
        write(target, found)
    return found


def check_format(file: Path) -> None:
    """Raise UserError for a file name with another ending than those of FORMATS."""
    if file.suffix.lower() not in FORMATS:
        raise UserError(
            f"out={file}: unknown format. Fix: use a name that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        )


@contextmanager
def _eval_mode(model: Backbone) -> Iterator[None]:
    """Put every module in eval mode, and restore each module's mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def write(file: Path, found: "dict[str, NDArray[Any]]") -> None:
    """Write columns of equal length as .npz (without pickle), .parquet (features: a list) or .csv (f0, f1, ...).

    Raises:
        UserError: If the file cannot be written.
    """
    content = io.BytesIO()
    if file.suffix.lower() == ".npz":
        np.savez(content, allow_pickle=False, **found)
    elif file.suffix.lower() == ".csv":
        content.write(csv_text(found).encode("utf-8", "surrogateescape"))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        columns = {
            name: pa.array(values.tolist())
            if values.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            for name, values in found.items()
        }
        parquet.write_table(pa.table(columns), content)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content.getvalue())
    except OSError as error:
        raise UserError(f"out={file}: cannot be written: {error.strerror}. Fix: choose another file.") from None


def csv_text(found: "dict[str, NDArray[Any]]") -> str:
    """Return a table with a header (features: f0, f1, ...); each number has the
    minimum number of digits that restore it exactly."""
    text = io.StringIO()
    columns: dict[str, NDArray[Any]] = {name: values for name, values in found.items() if values.ndim == 1}
    for values in (values for values in found.values() if values.ndim == 2):
        columns |= {f"f{number}": column for number, column in enumerate(values.T)}
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(map(str, row) for row in zip(*columns.values(), strict=True))
    return text.getvalue()


def _samples(data: Any, splits: Sequence[str], size: int) -> Iterator[dict[str, Any]]:
    """Yield one dict per sample: known columns, and `image`, [S, S, 3] uint8 or unchanged."""
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
    return (
        {"path": str(image) if isinstance(image, str | Path) else "", "key": number, "image": image}
        for number, image in enumerate(each(data))
    )


def _names(folder: Path) -> list[str]:
    from shards.sources.generic.folder import EXTENSIONS, walk

    if "://" in str(folder):
        raise UserError(f"embed: {folder} is a URL. Fix: copy the shards to a local folder.")
    if not folder.is_dir():
        raise UserError(f"embed: {folder} is not a folder. Fix: pass a folder of shards or of images, or images.")
    names = [name for name in walk(folder) if Path(name).suffix.lower() in EXTENSIONS]
    if not names:
        raise UserError(f"embed: no images in {folder}. Fix: pass a folder of images.")
    return names


def _of_shards(shards: ShardDataset, number: int, size: int) -> dict[str, Any]:
    item = shards[number]
    about = {name: str(item.metadata.get(known) or "") for name, known in (("path", "source"), ("person", "group"))}
    return {"key": item.key, "split": item.split, "label": item.label, "image": resize(item.image, size), **about}


def _of_file(folder: Path, name: str, size: int) -> dict[str, Any] | None:
    try:
        return {"path": name, "key": name, "image": resize(read_image(folder / name), size)}
    except UserError as error:
        log.warning("skipped: %s", error)
        return None


def _parallel(read: Any, places: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Decode on a few threads, in order, and prefetch at most one batch."""
    with ThreadPoolExecutor(THREADS) as pool:
        rest = iter(places)
        while some := list(islice(rest, 16 * THREADS)):
            yield from (row for row in pool.map(read, some) if row is not None)


def _batches(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(rows, size)):
        yield some
