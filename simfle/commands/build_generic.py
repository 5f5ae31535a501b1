"""Subcommands of build_shards for faces of any corpus: folders, lists, archives, WebDatasets, Parquet; drawn ones."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simfle.commands.build_options import Corpus
from simfle.commands.build_source import source

if TYPE_CHECKING:
    from shards.entry import Entry, Rejected

MISSING = "Share of the listed files that may be missing; with more, nothing is built."


def folder(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images, flat or nested.")],
    class_folders: Annotated[
        bool, typer.Option("--class-folders", help="The first folder below DIR (or below the split) is the label.")
    ] = False,
    split_folders: Annotated[
        bool, typer.Option("--split-folders", help="The first folder below DIR is the split: train, val or test.")
    ] = False,
) -> Corpus:
    """A folder of images; with --class-folders its folders are the labels, with --split-folders the splits."""
    from shards.sources.folder import Folder

    options = {"kind": "folder", "name": directory.name, "class_folders": class_folders, "split_folders": split_folders}
    entries = Folder(directory, class_folders, split_folders)
    return Corpus(
        entries, directory.resolve().name, options, class_folders, (directory,), entries.notes, before=entries.before
    )


def csv(  # noqa: PLR0913, PLR0917 - each one is an option
    file: Annotated[Path, typer.Argument(metavar="CSV", help="List of images with a header.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder that the paths are relative to; default: the list's.")
    ] = None,
    path_column: Annotated[str, typer.Option(help="Column of the paths.")] = "path",
    label_column: Annotated[str, typer.Option(help="Column of the labels; none: unlabelled.")] = "",
    split_column: Annotated[str, typer.Option(help="Column of the splits; none: all in train.")] = "",
    group_column: Annotated[str, typer.Option(help="Column of the person (or film): never divided by a split.")] = "",
    valence_column: Annotated[str, typer.Option(help="Column of the valence, -1 to 1.")] = "",
    arousal_column: Annotated[str, typer.Option(help="Column of the arousal, -1 to 1.")] = "",
    max_missing: Annotated[float, typer.Option(help=MISSING)] = 0.1,
) -> Corpus:
    """A CSV list of images with columns of paths, labels, splits and groups by name."""
    from shards.sources.table import Table

    columns = {"path": path_column, "label": label_column, "split": split_column, "group": group_column}
    root = file.parent if images is None else images
    entries = Table(
        file,
        root,
        path_column,
        label_column,
        split_column,
        group_column,
        valence_column=valence_column,
        arousal_column=arousal_column,
    )
    columns |= _affect(valence_column, arousal_column)
    options = {"kind": "csv", "name": file.name, "columns": columns}
    return Corpus(entries, file.stem, options, bool(label_column), max_missing=max_missing)


@dataclass(frozen=True)
class Again:
    """Entries that can be gone through again: `make` starts anew."""

    make: Callable[[], "Iterable[Entry | Rejected]"]

    def __iter__(self) -> "Iterator[Entry | Rejected]":
        return iter(self.make())


def procedural(
    people: Annotated[int, typer.Option(help="Drawn people; every fourth is in split test.")] = 64,
    images_per_person: Annotated[int, typer.Option(help="Images of each, the seven expressions in turn.")] = 28,
    size: Annotated[int, typer.Option(help="Side of the images, pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed draws other people.")] = 0,
) -> Corpus:
    """Drawn faces with identity, pose, light and seven expressions: no photo, nothing to download."""
    from shards.sources import procedural as drawn

    options = {"kind": "procedural", "people": people, "images": images_per_person, "size": size, "seed": seed}
    entries = Again(lambda: drawn.procedural(people, images_per_person, size, seed))
    return Corpus(entries, "procedural", options, labelled=True, terms="drawn by this program; free to use")


def table(  # noqa: PLR0913, PLR0917 - each one is an option
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="List with named columns: .csv, .tsv, .jsonl (or .gz), .parquet."),
    ],
    images: Annotated[
        Path | None, typer.Option(help="Folder that the paths are relative to; default: the list's.")
    ] = None,
    path_column: Annotated[str, typer.Option(help="Column of the paths.")] = "path",
    bytes_column: Annotated[
        str, typer.Option(help="Column of the image files themselves (in text: base64), instead of paths.")
    ] = "",
    label_column: Annotated[str, typer.Option(help="Column of the labels; none: unlabelled.")] = "",
    split_column: Annotated[str, typer.Option(help="Column of the splits; none: all in train.")] = "",
    group_column: Annotated[str, typer.Option(help="Column of the person (or film): never divided by a split.")] = "",
    box_columns: Annotated[
        str, typer.Option(help="Column of the face's box, or four joined by commas; the same path may have several.")
    ] = "",
    box_order: Annotated[
        str, typer.Option(help="xywh: left, top, width, height; xyxy: left, top, right, bottom. Pixels.")
    ] = "xywh",
    valence_column: Annotated[str, typer.Option(help="Column of the valence, -1 to 1.")] = "",
    arousal_column: Annotated[str, typer.Option(help="Column of the arousal, -1 to 1.")] = "",
    max_missing: Annotated[float, typer.Option(help=MISSING)] = 0.1,
) -> Corpus:
    """A list of images (CSV, TSV, JSON Lines or Parquet), by path or with the files in it."""
    from shards.sources.rows import kind_of
    from shards.sources.table import Table

    columns = {"path": path_column, "label": label_column, "split": split_column, "group": group_column}
    columns |= {"bytes": bytes_column, "box": box_columns, "box_order": box_order}
    root = file.parent if images is None else images
    entries = Table(
        file,
        root,
        path_column,
        label_column,
        split_column,
        group_column,
        bytes_column,
        box_columns,
        box_order,
        valence_column,
        arousal_column,
    )
    columns |= _affect(valence_column, arousal_column)
    options = {"kind": kind_of(file), "name": file.name, "columns": columns}
    return Corpus(entries, file.stem, options, bool(label_column), max_missing=max_missing)


def archive(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A .tar (.gz, .bz2, .xz) or .zip, or a folder of them.")],
    below: Annotated[str, typer.Option(help="Only this folder of the archive; folders count from there.")] = "",
    class_folders: Annotated[
        bool, typer.Option("--class-folders", help="The first folder (or that below the split) is the label.")
    ] = False,
    split_folders: Annotated[
        bool, typer.Option("--split-folders", help="The first folder is the split: train, val or test.")
    ] = False,
) -> Corpus:
    """Images in archives, which stay packed. With several archives, the name of each is the first folder."""
    from shards.sources.archive import Archive

    options: dict[str, Any] = {"kind": "archive", "name": path.name, "below": below}
    options |= {"class_folders": class_folders, "split_folders": split_folders}
    entries = Archive(path, class_folders, split_folders, below)
    return Corpus(entries, path.resolve().name.partition(".")[0], options, class_folders, _roots(path), entries.notes)


def webdataset(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of tars (as from img2dataset), or one tar.")],
    image: Annotated[str, typer.Option(help="Extension of the image, where a sample has several (input.jpg).")] = "",
    label_field: Annotated[str, typer.Option(help="Field of the .json with the label; default: the .cls.")] = "",
    group_field: Annotated[str, typer.Option(help="Field of the .json with the person: never divided.")] = "",
    split_pattern: Annotated[
        str,
        typer.Option(
            help="Regular expression with one group that finds the split in a tar's path: '^(train|val)-'; default: "
            "the last word there that names one, as in val-000000.tar."
        ),
    ] = "",
) -> Corpus:
    """An existing WebDataset: tars of samples with .cls, .json or .txt beside the image."""
    from shards.sources.webdataset import WebDataset

    options: dict[str, Any] = {"kind": "webdataset", "name": path.name, "image": image, "split_pattern": split_pattern}
    options |= {"label_field": label_field, "columns": {"group": group_field}}
    entries = WebDataset(path, image, label_field, group_field, split_pattern)
    return Corpus(entries, path.resolve().stem, options, bool(label_field), _roots(path), entries.notes)


def huggingface(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of Parquet files of a data set, or one file.")],
    image_column: Annotated[str, typer.Option(help="Column of the images; default: the one of type Image.")] = "",
    label_column: Annotated[str, typer.Option(help="Column of the labels; default: the ClassLabel.")] = "",
    group_column: Annotated[str, typer.Option(help="Column of the person (or film): never divided by a split.")] = "",
) -> Corpus:
    """Parquet files of a Hugging Face data set; splits and label names as there."""
    from shards.sources.huggingface import HuggingFace

    entries = HuggingFace(path, image_column, label_column, group_column)
    columns = {"image": image_column, "label": label_column, "group": group_column}
    options = {"kind": "huggingface", "name": path.name, "columns": columns}
    name = path.resolve().stem
    labels = entries.labels
    return Corpus(entries, name, options, bool(label_column), _roots(path), entries.notes, labels=labels)


def add_generic() -> None:
    """Add the subcommands."""
    for command in (folder, csv, procedural, table, archive, webdataset, huggingface):
        source(command)


def _affect(valence: str, arousal: str) -> dict[str, str]:
    """The columns of valence and arousal that are asked for."""
    return {name: column for name, column in (("valence", valence), ("arousal", arousal)) if column}


def _roots(path: Path) -> tuple[Path, ...]:
    """The folder that the output must not lie in."""
    return (path,) if path.is_dir() else ()
