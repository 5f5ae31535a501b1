"""A folder of images, flat or nested; its folders may name classes and splits."""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shards.entry import Entry, LazyBytes, Rejected
from shards.errors import UserError
from shards.io.file_names import is_system
from shards.rules import TEST, TRAIN, VAL, normalize_split

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
SPLITS = (TRAIN, VAL, TEST)
SPLIT_FOLDERS = "train, training, val, valid, validation, dev, test, testing (also with _set)"
UNREAD = frozenset(
    (".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".exr")
)
MOST_CLASSES = 10  # maximum number of classes listed before a build
DATE = re.compile(r"^\d+$|\b(19|20)\d\d\b|\d{1,4}[-.]\d{1,2}[-.]\d{1,4}")
CONVERT = "convert them to JPEG, for example with ImageMagick (magick mogrify -format jpg)"
MOST_SEEN = 5  # number of first-level folders kept for notes


@dataclass
class Folder:
    """Images below `root`.

    class_folders: the first folder of the relative path is the label; split_folders: a first folder called train, val
    or test (or training, validation, ...) is the split, and the folder below it is the class.
    """

    root: Path
    class_folders: bool = False
    split_folders: bool = False
    others: Counter[str] = field(default_factory=Counter)  # extension -> number of other files, after iterating
    folders: set[str] = field(default_factory=set)  # some of the first-level folders
    skipped: Counter[str] = field(default_factory=Counter)  # name of system folders and files -> number

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield entries sorted by path.

        Raises:
            UserError: If the folder does not exist or contains no image.
        """
        if not self.root.is_dir():
            raise UserError(f"folder={self.root}: not a folder. Fix: check the path.")
        self.others.clear()
        self.folders.clear()
        self.skipped.clear()
        found = 0
        for relative in walk(self.root, self.skipped):
            extension = PurePosixPath(relative).suffix.lower()
            if extension in EXTENSIONS:
                found += 1
                yield self._entry(relative)
            else:
                self.others[extension or "no extension"] += 1
        if not found:
            seen = ", ".join(f"{count} {extension}" for extension, count in self.others.most_common(5))
            fix = "check the path" if not conversion_note(self.others) else CONVERT
            raise UserError(f"folder: no images in {self.root} (found: {seen or 'nothing'}). Fix: {fix}.")

    def notes(self) -> list[str]:
        """Return hints for the user, after iterating."""
        found = []
        if self.others:
            kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(self.others.items()))
            found.append(f"files in {self.root} that are not images: {kinds}")
            found += conversion_note(self.others)
        if self.skipped:
            names = ", ".join(f"{count} {name}" for name, count in sorted(self.skipped.items()))
            found.append(f"skipped system folders and files: {names}")
        return found + unused_folder_notes(self.root, self.folders, self.class_folders, self.split_folders)

    def before(self) -> list[str]:
        """Describe how --class-folders reads the folders, by their names alone."""
        if not self.class_folders or not self.root.is_dir():
            return []
        classes: Counter[str] = Counter()
        for relative in walk(self.root):
            if PurePosixPath(relative).suffix.lower() in EXTENSIONS:
                folders = relative.split("/")[int(self.split_folders) : -1]
                classes[folders[0] if folders else ""] += 1
        loose = classes.pop("", 0)
        named = ", ".join(f"{name} ({count})" for name, count in sorted(classes.items())[:MOST_CLASSES])
        more = f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
        said = [f"classes from folders: {len(classes)} with {classes.total()} images: {named or 'none'}{more}"]
        dated = [name for name in classes if DATE.search(name)]
        if dated and len(dated) < len(classes):
            said.append(f"note: {', '.join(sorted(dated)[:MOST_SEEN])}: a number or date in the name; is it a class?")
        if loose:
            said.append(
                f"note: {loose} images are in no class folder, so they are unlabeled: --keep-unlabeled keeps them"
            )
        return said

    def _entry(self, relative: str) -> Entry | Rejected:
        count_folder(relative, self.folders)
        return infer_label_and_split(relative, relative, self.root / relative, self.class_folders, self.split_folders)


def conversion_note(others: Counter[str]) -> list[str]:
    """Return a note about photos in formats that are not read; others: extension -> number of files."""
    found = [f"{others[name]} {name}" for name in sorted(UNREAD & others.keys())]
    return [f"photos in formats that are not read: {', '.join(found)}. Fix: {CONVERT}"] if found else []


def infer_label_and_split(
    key: str, source: str, read: Path | bytes | LazyBytes, class_folders: bool, split_folders: bool
) -> Entry | Rejected:
    """Return an entry whose split and label come from the first folders of its key, if requested."""
    folders = key.split("/")[:-1]
    split = None
    if split_folders:
        split = normalize_split(folders[0]) if folders else ""
        if split not in SPLITS:
            here = f"its first folder is {folders[0]!r}" if folders else "it is in no folder"
            return Rejected(source, "no_split", f"{here}; accepted names: {SPLIT_FOLDERS}")
        folders = folders[1:]
    return Entry(key, source, read, folders[0] if class_folders and folders else None, split)


def count_folder(key: str, folders: set[str]) -> None:
    """Add the first folder of a key to `folders`, up to the number that `unused_folder_notes` needs."""
    first, slash, _ = key.partition("/")
    if slash and len(folders) < MOST_SEEN:
        folders.add(first)


def unused_folder_notes(root: Path, folders: set[str], class_folders: bool, split_folders: bool) -> list[str]:
    """Return hints about unused first-level folders of `root`; folders: some of them."""
    if split_folders or not folders:
        return []
    names = ", ".join(sorted(folders)[: MOST_SEEN - 1])
    if all(normalize_split(name) in SPLITS for name in folders):
        if class_folders:
            return [
                f"the labels of {root} are split names ({names}): add --split-folders to use them as splits and the "
                "folders below them as labels"
            ]
        return [
            f"unlabeled; {root} has split folders ({names}): add --split-folders to use them as splits, and "
            "--class-folders to use the folders below them as labels"
        ]
    if len(folders) > 1 and not class_folders:
        return [f"unlabeled; {root} has folders ({names} ...): add --class-folders to use them as labels"]
    return []


def walk(root: Path, skipped: Counter[str] | None = None) -> Iterator[str]:
    """Yield relative paths of all files below `root`, sorted, without hidden ones; follow links that form no loop.

    A link to a parent of `root` is also a loop: a link to / would list every file of the machine.
    skipped: counts the names of system folders and files, which are skipped too.
    """
    holding = (folder.stat() for folder in root.resolve().parents)
    above = frozenset((status.st_dev, status.st_ino) for status in holding)
    yield from _walk(str(root), "", above, Counter() if skipped is None else skipped)


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]], skipped: Counter[str]) -> Iterator[str]:
    status = Path(folder).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    names, folders = [], set()  # names of one folder at a time: 80 bytes per file
    with os.scandir(folder) as listing:
        for item in listing:
            if is_system(item.name):
                skipped[item.name] += 1
            elif not item.name.startswith("."):
                names.append(item.name)
                if _is_dir(item):
                    folders.add(item.name)
    names.sort()
    for name in names:
        if name in folders:
            yield from _walk(f"{folder}/{name}", f"{prefix}{name}/", above | {here}, skipped)
        else:
            yield prefix + name


def _is_dir(item: "os.DirEntry[str]") -> bool:
    """Return whether an item is a folder or a link to one; a link to itself is not."""
    try:
        return item.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False
