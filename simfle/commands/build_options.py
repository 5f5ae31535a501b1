"""What every subcommand of build_shards takes, and what it makes of its own arguments."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from shards.build import Report
    from shards.entry import Entry, Rejected
    from shards.request import Build


def option(default: Any, text: str, kind: Any = None) -> Any:
    """A field of Common with its help text; kind: its type, where the default does not tell."""
    return dataclasses.field(default=default, metadata={"help": text, "kind": kind or type(default)})


@dataclass(frozen=True)
class Common:
    """The options that all sources share."""

    val_fraction: float = option(0.0, "Share of the groups of split train that becomes split val.")
    test_fraction: float = option(0.0, "Share of the groups of split train that becomes split test.")
    group_pattern: str = option(
        "", r"Regular expression with one group that finds the person in a path, such as '^(.*)_\d+\.jpg$'."
    )
    split_seed: int = option(0, "Another seed puts other groups into val and test.")
    labels: str = option("", "Label names in the order of their numbers, joined by commas; others are rejected.")
    keep_unlabelled: bool = option(False, "Keep images without a label where labels are asked for.")
    quality: int = option(95, "JPEG quality of images that have to be written anew.")
    max_pixels: int = option(100_000_000, "Larger images are rejected.")
    strip_metadata: bool = option(
        True,
        "Take places, names, comments and thumbnails out of JPEGs that are kept; their pixels stay byte for byte. "
        "Images that are written anew never have any.",
    )
    crop: float | None = option(
        None,
        "Crop by the corpus's own box with this share of its sides around it, such as 0.25. Boxes and landmarks count "
        "in the pixels that the file stores; where EXIF turns the image, they are turned with it.",
        float | None,
    )
    shorter_side: int = option(0, "Shrink larger images so that their shorter side has so many pixels; 0: never.")
    align: bool = option(
        False,
        "Find the faces in uncropped photos (YuNet) and cut out each with level eyes, --crop (or 0.25) around it. "
        "Where the corpus gives a box or landmarks, only its own face is taken.",
    )
    min_face: int = option(32, "--align: smaller faces do not count, pixels of the photo.")
    min_score: float = option(0.8, "--align: less certain faces do not count, 0.5 to 1.")
    most_faces: int = option(
        0, "--align: most faces of one photo, the largest first; 0: all. 1 suits photos that have one label each."
    )
    face_model: Path | None = option(  # noqa: RUF009 - a field
        None, "--align: YuNet's .onnx file; default: the one installed.", Path | None
    )
    exclude: list[str] | None = option(  # noqa: RUF009 - a field
        None,
        "SHARDS or SHARDS:SPLIT, such as a benchmark's test split, repeatable: exact and near duplicates of its images "
        "are rejected, and people whose names are there.",
        list[str] | None,
    )
    exclude_distance: int = option(8, "--exclude: most differing bits of 64 of near duplicates, 0 to 16.")
    exclude_images_only: bool = option(
        False, "--exclude: people do not count, as where two corpora number theirs independently."
    )
    work: Path | None = option(  # noqa: RUF009 - a field
        None,
        "Folder for downloads of sources given by URL, and for shards before they are uploaded to one; default: in "
        "~/.cache/simfle/build.",
        Path | None,
    )
    shard_samples: int = option(2048, "Most entries in one shard.")
    corpus: str = option("", "Name of the corpus in the manifest; default: the name of the folder or list.")
    terms: str = option("", "Terms of use of the images, kept in the manifest.")
    workers: int = option(0, "Processes; 0: as many as there are cores.")


@dataclass(frozen=True)
class Corpus:
    """What a subcommand makes of its own arguments. roots: folders that the output must not lie in.

    notes: what the source has to say once it has been gone through; labels: their order where --labels is not given;
    about: called with the samples written by (split, label) before the shards appear; what it gives goes into the
    manifest; finish: called with the shards that stand, before the report is shown; photos: images are whole photos, of
    which an entry means one face, by its box; max_missing: the share of listed files that may be missing;
    before: what to know before it is gone through.
    """

    entries: "Iterable[Entry | Rejected]"
    name: str
    options: dict[str, Any]
    labelled: bool = False
    roots: tuple[Path, ...] = ()
    notes: Callable[[], list[str]] = list
    terms: str = ""
    labels: tuple[str, ...] = ()
    about: "Callable[[Build, Counter[tuple[str, str]]], dict[str, Any]]" = lambda request, written: {}
    finish: "Callable[[Build, Report], None]" = lambda request, report: None
    photos: bool = False
    max_missing: float = 1.0
    before: Callable[[], list[str]] = list


def typer_option(name: str, text: str, default: Any) -> Any:
    """Switches get no --no- twin, unless they are on by default."""
    flag = f"--{name.replace('_', '-')}"
    names = [f"{flag}/--no-{flag[2:]}" if default else flag] if isinstance(default, bool) else []
    return typer.Option(*names, help=text)
