"""Images in tar and zip archives, which stay packed; folders inside may name the classes and the splits."""

import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from shards.entry import Entry, Recipe, Rejected
from shards.errors import UserError
from shards.rules import TEST, TRAIN, VAL, normal_split
from shards.sources.folder import EXTENSIONS, walk
from shards.sources.layout import content, inside
from shards.sources.tars import ENDINGS, Member, read_tar, stem

LOCAL_HEADER = 30  # bytes before the name of a member in a zip; its data lie behind name and extra field


@dataclass
class Archive:
    """The images of an archive, or of all archives below a folder, whose names then are their first folder.

    class_folders, split_folders: as in shards.sources.folder; below: only what lies in this folder of the archive, the
    folders counted from there.
    """

    root: Path
    class_folders: bool = False
    split_folders: bool = False
    below: str = ""
    others: Counter[str] = field(default_factory=Counter)  # extension -> members that are no images, after iterating
    packed: Counter[str] = field(default_factory=Counter)  # compressed tars, whose images go through the plan

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Entries in the order of the archives' names and of their members.

        Raises:
            UserError: no archive, no image in any.
        """
        self.others.clear()
        self.packed.clear()
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
                    self.packed[name] += isinstance(item, Entry) and isinstance(item.read, bytes)
                    yield item
        if not found:
            seen = [f"{count} {extension}" for extension, count in self.others.most_common(5)]
            where = f"below {self.below!r} in {self.root}" if self.below else f"in {self.root}"
            raise UserError(f"archive: no images {where} (found: {', '.join(seen) or damage or 'nothing'})")

    def notes(self) -> list[str]:
        """What the user may have overlooked, after iterating."""
        found = []
        if self.others:
            kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(self.others.items()))
            found.append(f"members of {self.root.name} that are no images: {kinds}")
        for name, count in self.packed.items():
            if count:
                found.append(f"{name} is compressed as a whole: its {count} images were unpacked into the plan first")
        return found

    def _archives(self) -> list[tuple[str, Path]]:
        if self.root.is_file():
            return [(self.root.name, self.root.absolute())]
        if not self.root.is_dir():
            raise UserError(f"archive: {self.root} does not exist")
        names = [name for name in walk(self.root) if name.lower().endswith(ENDINGS)]
        if not names:
            raise UserError(f"archive: no archive ({', '.join(ENDINGS)}) in {self.root} (found: {content(self.root)})")
        return [(name, self.root.absolute() / name) for name in names]

    def _item(self, archive: str, prefix: str, member: Member) -> Entry | Rejected | None:
        """What becomes of a member; None if it is no image, hidden, or not asked for."""
        relative = inside(member.name)
        if relative is None:
            return Rejected(f"{archive}/{member.name}", "outside", "a path that leaves the archive")
        path = PurePosixPath(relative)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        if hidden or not path.is_relative_to(self.below):
            return None
        if not _is_image(relative):
            self.others[path.suffix.lower() or "no extension"] += 1
            return None
        if member.fate:
            return Rejected(f"{archive}/{relative}", *member.fate)
        return self._entry(f"{archive}/{relative}", f"{prefix}{path.relative_to(self.below)}", member)

    def _entry(self, source: str, key: str, member: Member) -> Entry | Rejected:
        folders = key.split("/")[:-1]
        split = None
        if self.split_folders:
            split = normal_split(folders.pop(0)) if folders else ""
            if split not in (TRAIN, VAL, TEST):
                return Rejected(source, "no_split")
        label = folders[0] if self.class_folders and folders else None
        return Entry(key, source, member.read, label, split)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def read_zip(file: Path) -> Iterator[Member | Rejected]:
    """The members of a zip, in the order of its directory, which is in the memory meanwhile: 550 bytes a member.

    A Rejected (source "") if it is no zip, or ends early: the directory is its last part.

    Raises:
        OSError: it cannot be read at all.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        yield Rejected("", "unreadable", f"not a whole zip: {error}")
        return
    for item in listed:
        if item.is_dir():
            continue
        name = item.filename.replace("\\", "/")
        if item.flag_bits & 1:
            fate: tuple[str, ...] = ("unreadable", "encrypted")
        elif item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            fate = ("unreadable", f"compression method {item.compress_type}; unpack the archive first")
        else:
            fate = ()
        packed = item.compress_type == zipfile.ZIP_DEFLATED
        arguments = (item.header_offset, item.compress_size, item.file_size, item.CRC, packed)
        yield Member(name, item.file_size, Recipe("shards.sources.archive:read_zipped", arguments, file), fate)


def read_zipped(file: Path, header: int, size: int, unpacked: int, crc: int, packed: bool) -> bytes:
    """A member of a zip by the offset of its header, for a worker: the directory is not read again.

    Raises:
        Unusable: damaged; OSError: the file cannot be read at all.
    """
    import zlib

    from shards.encode import MAX_BYTES, Unusable
    from shards.sources.pieces import read

    if unpacked > MAX_BYTES:
        raise Unusable("too_large", "more than 1 GiB")
    start = read(file, header, LOCAL_HEADER)
    if not start.startswith(b"PK\3\4"):
        raise Unusable("unreadable", f"no member of a zip at byte {header}")
    behind = sum(int.from_bytes(start[at : at + 2], "little") for at in (26, 28))
    data = read(file, header + LOCAL_HEADER + behind, size)
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, unpacked + 1) if packed else data
    except zlib.error as error:
        raise Unusable("unreadable", str(error)) from None
    if len(data) != unpacked or zlib.crc32(data) != crc:
        raise Unusable("unreadable", "its checksum is another one")
    return data
