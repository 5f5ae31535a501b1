"""Infer from the paths of a collection's images whether their first folders name splits and classes."""

from collections.abc import Iterable
from dataclasses import dataclass

from shards.rules import TEST, TRAIN, VAL, normalize_split

MAX_CLASSES = 100  # above this number of folders, they are people or albums rather than classes


@dataclass(frozen=True)
class FolderLayout:
    """Options of `shards.sources.generic.folder.Folder` that fit a collection. splits: names of the splits found."""

    class_folders: bool = False
    split_folders: bool = False
    splits: frozenset[str] = frozenset()


def infer_layout(paths: Iterable[str]) -> FolderLayout:
    """Infer the layout of a collection from the paths of its images, relative to it and with `/`.

    The first folders are splits if all images are in folders, and these include train and test, or are train and val.
    The first folders (or those below the splits) are classes if all images are in 2 to 100 of them.
    """
    parts = [path.split("/") for path in paths]
    splits = {normalize_split(folders[0]) for folders in parts if len(folders) > 1}
    nested = all(len(folders) > 1 for folders in parts)
    has_splits = nested and ({TRAIN, TEST} <= splits or splits == {TRAIN, VAL})
    inner = [folders[has_splits:] for folders in parts]
    classes = {folders[0] for folders in inner if len(folders) > 1}
    labeled = 2 <= len(classes) <= MAX_CLASSES and all(len(folders) > 1 for folders in inner)
    return FolderLayout(labeled, has_splits, frozenset(splits) if has_splits else frozenset())
