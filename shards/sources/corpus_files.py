"""Shared helpers of the sources of known corpora: find the parts of a corpus and read its lists."""

import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from shards.errors import UserError
from shards.io.atomic import open_regular
from shards.io.file_names import is_system
from shards.io.jsonl import MAX_LINE, split_lines

# Lists of file names are bytes: bytes that are not UTF-8 round-trip unchanged.
TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape"}


def first_existing(root: Path, *places: str) -> Path | None:
    """Return the first of `places`, paths relative to `root`, that exists."""
    return next((root / place for place in places if (root / place).exists()), None)


def require_path(corpus: str, root: Path, what: str, *places: str) -> Path:
    """Return a path like `first_existing`.

    Raises:
        UserError: If `root` is not a folder, or no path exists.
    """
    if not root.is_dir():
        raise UserError(f"{corpus}={root}: not a folder. Fix: pass the corpus folder.")
    found = first_existing(root, *places)
    if found is None:
        raise UserError(
            f"{corpus}: no {what} in {root} (searched: {', '.join(places)}; found: {describe_dir(root)}). "
            "Fix: pass the corpus folder as downloaded."
        )
    return found


def describe_dir(folder: Path) -> str:
    """List some names in a folder, for an error message."""
    names = sorted(item.name for item in islice(folder.iterdir(), 200) if not item.name.startswith("."))
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more if names else "nothing"


def list_dir(folder: Path) -> list[str]:
    """Return the names in `folder`, sorted, without hidden ones (.DS_Store, Thumbs.db and the ._ files of archives).

    Raises:
        UserError: If `folder` is a file.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a folder. Fix: unpack the corpus again.")
    with os.scandir(folder) as listing:
        return sorted(item.name for item in listing if not item.name.startswith(".") and not is_system(item.name))


def safe_relative_path(name: str) -> str | None:
    """Normalize a path from a list; return None if it is invalid or leads outside its base folder."""
    path = PurePosixPath(name)
    if not path.parts or "\0" in name or path.is_absolute() or ".." in path.parts:
        return None
    return str(path)


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line number (from 1) and text of non-blank lines."""
    with open_regular(file, **TEXT) as text:
        for number, line in enumerate(split_lines(text, MAX_LINE), 1):
            if line.strip():
                yield number, line.strip()


def numbers(text: str, count: int, separator: str | None = None) -> tuple[float, ...] | None:
    """Parse `count` finite numbers; return None for any other text."""
    try:
        values = tuple(map(float, text.split(separator)))
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def points(values: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Convert x, y, x, y ... to (x, y), (x, y) ..."""
    return tuple(zip(values[::2], values[1::2], strict=True))


def box(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float] | None:
    """Return a box, or None if it has no area. The box may extend beyond the image; cropping must clip it."""
    return (left, top, width, height) if width > 0 and height > 0 else None
