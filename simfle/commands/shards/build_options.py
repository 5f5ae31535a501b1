"""Options shared by the subcommands of `simfle shards build`, and the description of a corpus."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from shards.build.builder import BuildReport
    from shards.build.spec import BuildSpec
    from shards.entry import Entry, Rejected


def option(default: Any, text: str, kind: Any = None) -> Any:
    """Return a field of BuildOptions with its help text. `kind` is its type if the default does not show it."""
    return dataclasses.field(default=default, metadata={"help": text, "kind": kind or type(default)})


@dataclass(frozen=True)
class BuildOptions:
    """Options shared by all sources."""

    val_fraction: float = option(0.0, "fraction of the groups of split train to move to split val")
    test_fraction: float = option(0.0, "fraction of the groups of split train to move to split test")
    group_pattern: str = option(
        "", r"regular expression with one group that extracts the person from a path, such as '^(.*)_\d+\.jpg$'"
    )
    split_seed: int = option(0, "random seed; another one moves other groups to val and test")
    labels: str = option(
        "", "label names in the order of their ids, comma-separated; images with other labels are rejected"
    )
    keep_unlabeled: bool = option(False, "keep images without a label where labels are required")
    quality: int = option(95, "JPEG quality of re-encoded images")
    max_pixels: int = option(100_000_000, "maximum number of pixels; larger images are rejected")
    strip_metadata: bool = option(
        True,
        "remove locations, names, comments and thumbnails from JPEGs that are kept as is; pixels are unchanged; "
        "re-encoded images never have metadata",
    )
    crop: float | None = option(
        None,
        "crop to the corpus's box with this fraction of the box's sides as margin, such as 0.25; boxes and landmarks "
        "are in pixels of the stored file and are rotated by its EXIF orientation",
        float | None,
    )
    shorter_side: int = option(0, "maximum shorter side in pixels (0 = no resize)")
    align: bool = option(
        False,
        "detect faces in uncropped photos (YuNet) and cut out each with level eyes and margin --crop (or 0.25); "
        "if the corpus gives a box or landmarks, only that face is kept",
    )
    min_face_size: int = option(32, "--align: minimum side of a face in pixels of the photo")
    min_confidence: float = option(0.8, "--align: minimum detection confidence, 0.5 to 1")
    max_faces: int = option(
        0, "--align: maximum number of faces per photo, largest first (0 = all); 1 suits photos with one label each"
    )
    face_model: Path | None = option(  # noqa: RUF009 - a field
        None, "--align: YuNet's .onnx file (default: the installed one)", Path | None
    )
    exclude: list[str] | None = option(  # noqa: RUF009 - a field
        None,
        "SHARDS or SHARDS:SPLIT, such as a benchmark's test split (repeatable): exact and near duplicates of its "
        "images and people with the same name are rejected",
        list[str] | None,
    )
    exclude_hamming: int = option(8, "--exclude: maximum Hamming distance of near duplicates, 0 to 16 of 64 bits")
    exclude_images_only: bool = option(
        False, "--exclude: compare images only, e.g. if two corpora number their people independently"
    )
    near_duplicates: bool = option(
        False,
        "after the build, also find near duplicates (re-encoded, resized or slightly cropped copies) and list them in "
        "OUT.duplicates.jsonl, as simfle shards duplicates does; exact copies are always counted",
    )
    work: Path | None = option(  # noqa: RUF009 - a field
        None,
        "folder for downloaded sources, and for shards before their upload (default: in ~/.cache/simfle/build)",
        Path | None,
    )
    shard_samples: int = option(2048, "maximum number of entries per shard")
    corpus: str = option("", "name of the corpus in the manifest (default: name of the folder or list)")
    terms: str = option("", "terms of use of the images, kept in the manifest")
    workers: int = option(0, "number of processes (0 = number of cores)")


@dataclass(frozen=True)
class SourceInput:
    """Corpus as a subcommand describes it.

    roots: folders that must not contain the output.
    notes: returns the source's notes; called after all entries are read.
    labels: order of the labels if --labels is not given.
    about: returns values for the manifest from the samples written by (split, label); called before the shards are
        published.
    finish: called with the published shards, before the report is printed.
    needs_crop: whether images are whole photos, in which an entry is one face given by its box.
    max_missing: maximum fraction of listed files that may be missing.
    before: notes to print before the entries are read.
    """

    entries: "Iterable[Entry | Rejected]"
    name: str
    options: dict[str, Any]
    labeled: bool = False
    roots: tuple[Path, ...] = ()
    notes: Callable[[], list[str]] = list
    terms: str = ""
    labels: tuple[str, ...] = ()
    about: "Callable[[BuildSpec, Counter[tuple[str, str]]], dict[str, Any]]" = lambda request, written: {}
    finish: "Callable[[BuildSpec, BuildReport], None]" = lambda request, report: None
    needs_crop: bool = False
    max_missing: float = 1.0
    before: Callable[[], list[str]] = list


def typer_option(name: str, text: str, default: Any) -> Any:
    """Return a Typer option. A switch has a --no- form only if it is on by default."""
    flag = f"--{name.replace('_', '-')}"
    names = [f"{flag}/--no-{flag[2:]}" if default else flag] if isinstance(default, bool) else []
    return typer.Option(*names, help=text)
