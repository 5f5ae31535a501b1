"""Match file names: lists use Unicode NFC (`José`), macOS disks NFD; Windows ignores the case of `.JPG`."""

import unicodedata
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

MAX_FOLDERS = 64  # number of cached folder listings


def find_spelling(path: Path) -> Path | None:
    """Return the file that `path` means in another Unicode form, or with its extension in another case.

    Returns None if there is none or more than one.
    """
    cased = [other for other in _other_cases(path) if other.exists()]
    if cased:
        return cased[0] if len(cased) == 1 else None
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


def _other_cases(path: Path) -> list[Path]:
    """Return the path with its extension in lower and in upper case, without the path itself."""
    suffixes = {path.suffix.lower(), path.suffix.upper()} - {path.suffix}
    return [path.with_suffix(suffix) for suffix in sorted(suffixes)] if path.suffix else []


def exists(path: Path) -> bool:
    """Return whether the file exists in any Unicode form."""
    return path.exists() or find_spelling(path) is not None


@lru_cache(MAX_FOLDERS)
def _spellings(folder: Path) -> dict[str, tuple[str, ...]]:
    """Map NFC -> names of a folder's files with accents."""
    found: dict[str, tuple[str, ...]] = {}
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # other errors are the disk's
        for item in folder.iterdir():
            if not item.name.isascii():
                name = unicodedata.normalize("NFC", item.name)
                found[name] = (*found.get(name, ()), item.name)
    return found
