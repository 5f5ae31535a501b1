"""What the sources of known corpora have in common: finding their parts, reading lists that somebody else wrote."""

import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from shards.errors import UserError
from shards.files import open_regular
from shards.names import is_system
from shards.plain import MOST_LINE, lines_of

# Lists of file names are bytes to us: what is no UTF-8 comes back out as it went in.
TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape"}


def find(root: Path, *places: str) -> Path | None:
    """The first of `places`, paths relative to `root`, that exists."""
    return next((root / place for place in places if (root / place).exists()), None)


def need(corpus: str, root: Path, what: str, *places: str) -> Path:
    """As `find`.

    Raises:
        UserError: `root` is no folder or has none of them.
    """
    if not root.is_dir():
        raise UserError(f"{corpus}: {root} is not a folder")
    found = find(root, *places)
    if found is None:
        raise UserError(f"{corpus}: no {what} in {root} (looked for {' or '.join(places)}; found: {content(root)})")
    return found


def content(folder: Path) -> str:
    """Some names in a folder, for an error message."""
    names = sorted(item.name for item in islice(folder.iterdir(), 200) if not item.name.startswith("."))
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more if names else "nothing"


def names(folder: Path) -> list[str]:
    """The names in `folder`, sorted, hidden ones left out (.DS_Store, Thumbs.db and the ._ files of archives).

    Raises:
        UserError: it is a file.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a folder; unpack the corpus again")
    with os.scandir(folder) as listing:
        return sorted(item.name for item in listing if not item.name.startswith(".") and not is_system(item.name))


def inside(name: str) -> str | None:
    """A path from a list in its shortest form; None if it is none or leaves the folder that it is relative to."""
    path = PurePosixPath(name)
    if not path.parts or "\0" in name or path.is_absolute() or ".." in path.parts:
        return None
    return str(path)


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and text of the lines that are not blank."""
    with open_regular(file, **TEXT) as text:
        for number, line in enumerate(lines_of(text, MOST_LINE), 1):
            if line.strip():
                yield number, line.strip()


def numbers(text: str, count: int, separator: str | None = None) -> tuple[float, ...] | None:
    """`count` finite numbers; None if the text is anything else."""
    try:
        values = tuple(map(float, text.split(separator)))
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def points(values: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """x, y, x, y ... -> (x, y), (x, y) ..."""
    return tuple(zip(values[::2], values[1::2], strict=True))


def box(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float] | None:
    """A box with an area, None without one. It may reach beyond the image; whoever crops has to cut it."""
    return (left, top, width, height) if width > 0 and height > 0 else None
