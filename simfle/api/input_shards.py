"""Build shards from the data that a user names: a folder of images, archives, or Parquet files."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.format.manifest import NAME, REJECTED
from shards.io.urls import is_url
from shards.sources.containers.tars import ENDINGS
from simfle.errors import UserError

if TYPE_CHECKING:
    from shards.entry import Entry, Rejected

log = logging.getLogger(__name__)
PARQUET = ".parquet"
# Endings of the files that `shards_of` reads; other files may be configurations.
DATA_ENDINGS = (*ENDINGS, PARQUET)
ProgressCallback = Callable[[str, int, int], None]  # stage, done, total


def is_data(word: str) -> bool:
    """Return whether a word of the command line names data rather than a configuration file or key=value."""
    if is_url(word.partition("=")[0]):
        return True
    place = Path(word).expanduser()
    try:
        if place.exists():
            return place.is_dir() or word.lower().endswith(DATA_ENDINGS)
    except (OSError, ValueError):  # too long for a name
        return False
    return "=" not in word and place.suffix not in (".yaml", ".yml")


def shards_of(places: Sequence[str], run: Path, progress: ProgressCallback = lambda *_: None) -> list[str]:
    """Return the shards of each place: their own location, or RUN/shards, RUN/shards1, ... built from its images.

    Args:
        places: shards (a folder or a URL), a folder of images, an archive (.tar, .zip, ...), a folder of archives, or
            Parquet files of a Hugging Face dataset.
        run: run folder.
        progress: called with stage, done, total of a build.

    Raises:
        UserError: If a place does not exist or contains no image, or `run` contains shards of other images.
    """
    names = ("shards" if number == 0 else f"shards{number}" for number in itertools.count())
    return [_shards_of(place, run / name, progress) for place, name in zip(places, names, strict=False)]


def _shards_of(place: str, out: Path, progress: ProgressCallback) -> str:
    if is_url(place):
        return place
    path = Path(place)
    if path.is_dir() and ((path / NAME).is_file() or any(path.glob("*.tar"))):
        return place
    if not path.is_dir() and not (path.is_file() and place.lower().endswith(DATA_ENDINGS)):
        raise UserError(
            f"data: {place} is not a folder. Fix: pass shards or a folder of images, or an archive "
            f"({', '.join(ENDINGS)})."
        )
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise UserError(f"out: {out.parent} is inside the images {place}. Fix: choose a folder outside of them.")
    build_images(path, out, progress)
    return str(out)


def build_images(place: Path, out: Path, progress: ProgressCallback = lambda *_: None) -> None:
    """Build shards from images, with labels and splits where folders name them. Complete shards are kept.

    Raises:
        UserError: If there is no image, or the output cannot be written or contains other shards.
    """
    from shards.build.builder import build
    from shards.build.spec import BuildSpec

    entries, options = _source(place)
    name = place.resolve().name
    out.parent.mkdir(parents=True, exist_ok=True)
    request = BuildSpec(
        out,
        name if place.is_dir() else name.partition(".")[0],
        options,
        workers=len(os.sched_getaffinity(0)),
    )
    report = build(request, entries, progress)
    if not report.up_to_date:
        log.info("%s: built shards of %d images in %s", place, report.manifest.samples, out)
    rejected = report.manifest.rejected
    if count := sum(rejected.values()):
        reasons = ", ".join(f"{number} {reason}" for reason, number in rejected.items())
        log.warning("%s: %d images are not used (%s): see %s", place, count, reasons, out / REJECTED)
    for note in report.notes:
        log.info("%s: %s", place, note)


def _source(place: Path) -> "tuple[Iterable[Entry | Rejected], dict[str, Any]]":
    """Return the entries of a place and their options, those of `simfle shards build`, so that both write the same
    bytes."""
    from shards.entry import Entry
    from shards.sources.generic.archive import Archive
    from shards.sources.generic.folder import EXTENSIONS, Folder, walk
    from shards.sources.generic.huggingface import HuggingFace
    from shards.sources.generic.layout import infer_layout

    names = list(walk(place)) if place.is_dir() else [place.name]
    images = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    name = place.resolve().name
    if not images and any(name.lower().endswith(PARQUET) for name in names):
        columns = {"image": "", "label": "", "group": ""}
        return HuggingFace(place), {"kind": "huggingface", "name": name, "columns": columns}
    packed = not images and any(name.lower().endswith(ENDINGS) for name in names)
    if packed:
        images = [entry.key for entry in Archive(place) if isinstance(entry, Entry)]
    layout = infer_layout(images)
    classes, splits = layout.class_folders, layout.split_folders
    options: dict[str, Any] = {"name": name, "class_folders": classes, "split_folders": splits}
    if packed:
        return Archive(place, classes, splits), {"kind": "archive", "below": "", **options}
    return Folder(place, classes, splits), {"kind": "folder", **options}
