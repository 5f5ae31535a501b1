"""Access a corpus's files in its folder or in its original zip, without unpacking."""

import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from shards.entry import LazyBytes, Rejected
from shards.errors import UserError
from shards.io.atomic import MISSING, UNREADABLE, read_bytes
from shards.io.unicode_paths import find_spelling
from shards.sources.containers.zips import read_zip
from shards.sources.corpus_files import describe_dir, safe_relative_path

LIST_BYTES = 1 << 28  # maximum bytes of a corpus's list, which is read whole


@dataclass(frozen=True)
class CorpusFiles:
    """Files by path below `base`, a folder or a path inside `archive`; archive None: `base` is on disk."""

    base: Path
    archive: Path | None = None
    members: dict[str, tuple[LazyBytes | bytes, tuple[str, ...]]] = field(default_factory=dict, repr=False)

    @cached_property
    def where(self) -> str:
        """Location for messages."""
        return str(self.archive or self.base)

    def read(self, name: str) -> Path | bytes | LazyBytes | Rejected:
        """Return a file's path or lazy bytes; a Rejected if its path is invalid, or it is missing or unreadable."""
        path = safe_relative_path(name)
        if path is None:
            return Rejected(name, "outside", "a path outside the folder")
        if self.archive is None:
            place = (self.base / path).absolute()
            return place if path.isascii() or place.exists() else find_spelling(place) or place
        place = self.base / path
        read, fate = self.members.get(place.as_posix()) or self._spelled(place.as_posix())
        return Rejected(path, *fate) if fate else read

    def _spelled(self, name: str) -> tuple[LazyBytes | bytes, tuple[str, ...]]:
        """Return the only member whose name differs just in its Unicode form; a rejection if there is none."""
        found = self._accented.get(unicodedata.normalize("NFC", name), ())
        return self.members[found[0]] if len(found) == 1 else (b"", ("missing",))

    @cached_property
    def _accented(self) -> dict[str, list[str]]:
        """Map NFC -> names of the members with accents."""
        found: dict[str, list[str]] = {}
        for name in self.members:
            if not name.isascii():
                found.setdefault(unicodedata.normalize("NFC", name), []).append(name)
        return found

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        found = self.read(name)
        return found.is_file() if isinstance(found, Path) else not isinstance(found, Rejected)

    def bytes(self, name: str) -> bytes:
        """Read a file's bytes, or b"" if it cannot be read (the decoder then reports the reason)."""
        found = self.read(name)
        return b"" if isinstance(found, Rejected) else digest_of(found)

    def text(self, corpus: str, name: str) -> str:
        """Read a list as text; bytes that are not UTF-8 round-trip unchanged.

        Raises:
            UserError: If the list is missing, corrupt or too large.
        """
        found = self.read(name)
        recipe = found.arguments if isinstance(found, LazyBytes) else ()
        if isinstance(found, Path) and found.is_file() and found.stat().st_size > LIST_BYTES:
            raise UserError(
                f"{corpus}: {found} has more than {LIST_BYTES} bytes. Fix: use the original, unmodified file."
            )
        if recipe and int(recipe[2]) > LIST_BYTES:
            raise UserError(f"{corpus}: {name} in {self.where} is too large. Fix: use the original, unmodified file.")
        data = self.bytes(name)
        if not data:
            raise UserError(f"{corpus}: {name} in {self.where} is missing, empty or corrupt. Fix: download it again.")
        return data.decode("utf-8-sig", "surrogateescape")


def digest_of(read: Path | bytes | LazyBytes) -> bytes:
    """Read the bytes of an entry's image; b"" if the file is missing or unreadable.

    Raises:
        OSError: a disk or network fails.
    """
    from shards.imaging.codec import ImageRejected

    if isinstance(read, bytes):
        return read
    try:
        return read() if isinstance(read, LazyBytes) else read_bytes(read)
    except ImageRejected:
        return b""
    except OSError as error:
        if error.errno in (*MISSING, *UNREADABLE):
            return b""
        raise


def find_corpus_files(root: Path, anchor: str, folder: str) -> CorpusFiles | None:
    """Find the folder, in the folder or zip `root`, that contains the file `anchor` and the folder `folder`.

    The folder may be one level deeper. If `root` is a folder, it may contain the corpus as its only zip.

    Raises:
        UserError: If the zip is corrupt.
    """
    if root.is_file() and root.suffix.lower() == ".zip":
        return _in_zip(root, anchor, folder)
    if not root.is_dir():
        return None
    inner = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for base in (root, *inner):
        if (base / anchor).is_file() and (base / folder).is_dir():
            return CorpusFiles(base)
    zips = sorted(path for path in root.iterdir() if path.suffix.lower() == ".zip" and path.is_file())
    return _in_zip(zips[0], anchor, folder) if len(zips) == 1 else None


def _in_zip(archive: Path, anchor: str, folder: str) -> CorpusFiles | None:
    members: dict[str, tuple[LazyBytes | bytes, tuple[str, ...]]] = {}
    for member in read_zip(archive.absolute()):
        if isinstance(member, Rejected):
            raise UserError(f"{archive}: {member.detail}. Fix: download it again.")
        if (name := safe_relative_path(member.name)) is not None:
            members[name] = member.read, member.rejection
    places = {name.removesuffix(anchor).rstrip("/") for name in members if f"/{name}".endswith(f"/{anchor}")}
    for base in sorted(places, key=lambda place: (place.count("/"), place)):
        start = f"{base}/{folder}/" if base else f"{folder}/"
        if not base.startswith("__MACOSX") and any(name.startswith(start) for name in members):
            return CorpusFiles(Path(base), archive.absolute(), members)
    return None


def require_corpus_files(corpus: str, root: Path, anchor: str, folder: str) -> CorpusFiles:
    """Return the files like `find_corpus_files`. Raises UserError if there are none."""
    found = find_corpus_files(root, anchor, folder)
    if found is None:
        there = f" (found: {describe_dir(root)})" if root.is_dir() else ""
        raise UserError(f"{corpus}: no {anchor} beside {folder}/ in {root}{there}. Fix: pass its zip or folder.")
    return found
