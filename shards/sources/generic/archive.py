"""Images in tar and zip archives, read without unpacking; folders inside may name classes and splits."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from posixpath import splitext

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.io.file_names import is_system
from shards.rules import normalize_unicode
from shards.sources.containers.tars import ENDINGS, ArchiveMember, read_tar, stem
from shards.sources.containers.zips import read_zip
from shards.sources.corpus_files import describe_dir, safe_relative_path
from shards.sources.generic.folder import (
    EXTENSIONS,
    conversion_note,
    count_folder,
    infer_label_and_split,
    unused_folder_notes,
    walk,
)

UNREAD_ARCHIVES = (".7z", ".rar", ".zst", ".gz", ".bz2", ".xz", ".lz4", ".iso", ".dmg")  # tar.gz and the like are read


@dataclass
class Archive:
    """Images of one archive, or of all archives below a folder (each archive's name is then the first folder).

    class_folders, split_folders: as in shards.sources.generic.folder; subdir: read only this folder of the archive;
    folder names count from there.
    """

    root: Path
    class_folders: bool = False
    split_folders: bool = False
    subdir: str = ""
    others: Counter[str] = field(default_factory=Counter)  # extension -> number of other members, after iterating
    packed: Counter[str] = field(default_factory=Counter)  # compressed tar -> images copied into the plan
    folders: set[str] = field(default_factory=set)  # some of the first-level folders
    guessed: dict[str, str] = field(default_factory=dict)  # archive -> a name whose encoding is unknown

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield entries in the order of the archives' names and of their members.

        Raises:
            UserError: If there is no archive, or no image in any.
        """
        self.others.clear()
        self.packed.clear()
        self.folders.clear()
        self.guessed.clear()
        found, damage = False, ""
        for name, file in self._archives():
            prefix = "" if file == self.root.absolute() else f"{stem(name)}/"
            for member in read_zip(file) if name.lower().endswith(".zip") else read_tar(file, _is_image):
                if isinstance(member, Rejected):
                    damage = member.detail
                    yield replace(member, source=name)
                    continue
                item = self._item(name, prefix, member)
                if item is not None:
                    found = True
                    if member.guessed:
                        self.guessed.setdefault(name, member.name)
                    self.packed[name] += isinstance(item, Entry) and isinstance(item.read, bytes)
                    yield item
        if not found:
            seen = [f"{count} {extension}" for extension, count in self.others.most_common(5)]
            where = f"below {self.subdir!r} in {self.root}" if self.subdir else f"in {self.root}"
            fix = "unpack it" if self.root.suffix.lower() in UNREAD_ARCHIVES else "check the path"
            raise UserError(
                f"archive: no images {where} (found: {', '.join(seen) or damage or 'nothing'}). Fix: {fix}."
            )

    def notes(self) -> list[str]:
        """Return hints for the user, after iterating."""
        found = []
        if self.others:
            kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(self.others.items()))
            found.append(f"members of {self.root.name} that are not images: {kinds}")
            found += conversion_note(self.others)
        for name, count in self.packed.items():
            if count:
                found.append(f"{name} is a compressed tar: its {count} images were copied into the plan")
        for name, member_name in self.guessed.items():
            found.append(
                f"{name} does not state the encoding of its names, which were read as cp437, such as {member_name!r}; "
                "if this is wrong, unpack it, rename the files and build from the folder"
            )
        return found + unused_folder_notes(self.root, self.folders, self.class_folders, self.split_folders)

    def _archives(self) -> list[tuple[str, Path]]:
        if self.root.is_file():
            return [(self.root.name, self.root.absolute())]
        if not self.root.is_dir():
            raise UserError(f"archive={self.root}: does not exist. Fix: check the path.")
        names = [name for name in walk(self.root) if name.lower().endswith(ENDINGS)]
        if not names:
            raise UserError(
                f"archive: no archive ({', '.join(ENDINGS)}) in {self.root} (found: {describe_dir(self.root)}). "
                "Fix: check the path."
            )
        return [(name, self.root.absolute() / name) for name in names]

    def _item(self, archive: str, prefix: str, member: ArchiveMember) -> Entry | Rejected | None:
        """Return the entry of a member, or None if it is not an image, hidden, or not requested."""
        relative = safe_relative_path(member.name)
        if relative is None:
            return Rejected(f"{archive}/{member.name}", "outside", "a path outside the archive")
        parts = relative.split("/")
        hidden = any(part.startswith(".") or is_system(part) for part in parts)
        below = PurePosixPath(self.subdir).parts
        if hidden or list(map(normalize_unicode, parts[: len(below)])) != list(map(normalize_unicode, below)):
            return None
        if not _is_image(relative):
            self.others[splitext(relative)[1].lower() or "no extension"] += 1
            return None
        if member.rejection:
            return Rejected(f"{archive}/{relative}", *member.rejection)
        key = f"{prefix}{'/'.join(parts[len(below) :])}"
        count_folder(key, self.folders)
        return infer_label_and_split(key, f"{archive}/{relative}", member.read, self.class_folders, self.split_folders)


def _is_image(name: str) -> bool:
    return splitext(name)[1].lower() in EXTENSIONS
