"""Names with accents: lists say `José` in one spelling of Unicode (NFC), a Mac's disk has it in another (NFD)."""

import unicodedata
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

MOST_FOLDERS = 64  # whose names are remembered


def spelled(path: Path) -> Path | None:
    """The file that `path` means in another spelling of its accents; None where there is none, or more than one."""
    if str(path).isascii():
        return None
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not part.isascii() and not (found / part).exists():
            names = _spellings(found).get(unicodedata.normalize("NFC", part), ())
            if len(names) != 1:
                return None
            part = names[0]  # noqa: PLW2901 - the same name
        found /= part
    return found if found.exists() else None


def exists(path: Path) -> bool:
    """Whether there is such a file, in whatever spelling."""
    return path.exists() or spelled(path) is not None


@lru_cache(MOST_FOLDERS)
def _spellings(folder: Path) -> dict[str, tuple[str, ...]]:
    """NFC -> names in a folder, those with accents."""
    found: dict[str, tuple[str, ...]] = {}
    with suppress(OSError):
        for item in folder.iterdir():
            if not item.name.isascii():
                name = unicodedata.normalize("NFC", item.name)
                found[name] = (*found.get(name, ()), item.name)
    return found
