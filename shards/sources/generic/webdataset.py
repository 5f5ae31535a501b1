"""Source of existing WebDatasets: tars of samples, as written by webdataset's ShardWriter and img2dataset.

A sample is a run of members whose names agree up to the first dot: an image and, optionally, `.cls` (a number or a
name), `.txt` (a caption), `.json` (any object). For `00000.tar`, img2dataset adds `00000.parquet`, which repeats the
.json members and lists failed downloads, and `00000_stats.json` with the number of successful downloads.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.format.external_tars import check_sorted, split_from_name
from shards.io.atomic import read_bytes
from shards.io.jsonl import MAX_JSON, loads
from shards.sources.containers.tars import MAX_UNPACKED, TAR_ENDINGS, TOO_LARGE, ArchiveMember, read_tar, stem
from shards.sources.corpus_files import describe_dir, safe_relative_path
from shards.sources.generic.folder import EXTENSIONS, walk
from shards.sources.generic.rows import has_value

# img2dataset's .json fields that are irrelevant to the face or reveal who took the photo and where.
LEFT_OUT = ("key", "status", "error_message", "width", "height", "exif")
MOST_NAMED = 5  # maximum number of tars in a note


@dataclass
class WebDataset:
    """Source: the samples of one tar, or of all tars below a folder.

    image: extension of the image member of samples with several ("input.jpg"); label_field, group_field: fields of the
    .json; split_pattern: a regular expression with one group, searched in the tar's path. Without a pattern, the last
    split name in the path wins, as for tars that are read without a build.
    """

    root: Path
    image: str = ""
    label_field: str = ""
    group_field: str = ""
    split_pattern: str = ""
    found: dict[str, int] = field(default_factory=dict)  # tar -> samples, after iterating

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield entries in the order of the tars' names and samples; extras: fields of the .json, caption.

        Raises:
            UserError: If there is no tar or no sample, or the pattern is invalid.
        """
        pattern = self._pattern()
        self.found.clear()
        for name, file in self._tars():
            split: str | None = split_from_name(name)
            if pattern:
                match = pattern.search(name)
                split = match[1] if match else None
            self.found[name] = 0
            for sample in samples(read_tar(file), file):
                if isinstance(sample, Rejected):
                    yield replace(sample, source=name)
                    continue
                self.found[name] += 1
                if pattern and split is None:
                    yield Rejected(f"{name}/{sample[0]}", "no_split")
                else:
                    yield self._entry(name, split, *sample)
        if not any(self.found.values()):
            raise UserError(f"webdataset: no samples in {self.root} ({len(self.found)} tars). Fix: check the path.")

    def notes(self) -> list[str]:
        """Return notes about tars whose content differs from img2dataset's statistics."""
        folder = self.root.parent if self.root.is_file() else self.root
        notes, differing, unfinished, failed, asked = [], [], [], 0, 0
        for name, count in self.found.items():
            stats = _stats(folder / f"{stem(name)}_stats.json")
            if stats is None:
                unfinished.append(name)
                continue
            asked, failed = asked + stats["count"], failed + stats["count"] - stats["successes"]
            if stats["successes"] != count:
                differing.append(f"{name} {count} of {stats['successes']}")
        if differing:
            notes.append(f"tars whose counts differ from their _stats.json: {', '.join(differing[:MOST_NAMED])}")
        if unfinished and len(unfinished) < len(self.found):
            notes.append(
                f"{len(unfinished)} tars without _stats.json ({', '.join(unfinished[:MOST_NAMED])}): unfinished?"
            )
        if failed:
            notes.append(f"{failed} of {asked} downloads had failed; see the .parquet files")
        return notes

    def _tars(self) -> list[tuple[str, Path]]:
        if self.root.is_file():
            return [(self.root.name, self.root.absolute())]
        if not self.root.is_dir():
            raise UserError(f"webdataset={self.root}: does not exist. Fix: check the path.")
        names = [name for name in walk(self.root) if name.lower().endswith(TAR_ENDINGS)]
        if not names:
            raise UserError(
                f"webdataset: no .tar in {self.root} (found: {describe_dir(self.root)}). Fix: check the path."
            )
        return [(name, self.root.absolute() / name) for name in names]

    def _pattern(self) -> re.Pattern[str] | None:
        try:
            pattern = re.compile(self.split_pattern)
        except re.error as error:
            raise UserError(
                f"--split-pattern={self.split_pattern!r}: not a regular expression ({error}). Fix: correct it."
            ) from None
        if self.split_pattern and pattern.groups != 1:
            raise UserError(
                f"--split-pattern={self.split_pattern!r}: has {pattern.groups} groups, needs one. Fix: put one pair of "
                "parentheses around the split name, as in '^(train|val)-'."
            )
        return pattern if self.split_pattern else None

    def _entry(self, tar: str, split: str | None, key: str, members: dict[str, ArchiveMember]) -> Entry | Rejected:
        source = f"{tar}/{key}"
        if safe_relative_path(key) is None:
            return Rejected(source, "outside", "a path outside the archive")
        extension = self._image(members)
        if extension is None:
            return Rejected(source, "missing", f"no image among {', '.join(members)}; a key ends at the first dot")
        image = members[extension]
        if image.rejection:
            return Rejected(source, *image.rejection)
        try:
            known = _json(members)
            label = known.pop(self.label_field, None) if self.label_field else _text(members, "cls")
            group = known.pop(self.group_field, None) if self.group_field else None
            extras = {name: value for name, value in known.items() if name not in LEFT_OUT and has_value(value)}
            caption = _text(members, "txt")
        except ValueError as error:
            return Rejected(source, "bad_row", str(error))
        if caption is not None:
            extras.setdefault("caption", caption)
        return Entry(
            key=f"{stem(tar)}/{key}",
            source=f"{source}.{extension}",
            read=image.read,
            label=None if label is None else str(label),
            split=split,
            group=None if group is None else str(group),
            extras=extras,
        )

    def _image(self, members: dict[str, ArchiveMember]) -> str | None:
        if self.image:
            return self.image if self.image in members else None
        return next((extension for extension in members if f".{extension.lower()}" in EXTENSIONS), None)


def samples(
    members: Iterable[ArchiveMember | Rejected], tar: Path
) -> Iterator[tuple[str, dict[str, ArchiveMember]] | Rejected]:
    """Group members by key and yield them by extension; skip hidden ones. A repeated extension starts a new group.

    Raises:
        UserError: If the members of a key are not adjacent, because the tar is not sorted.
    """
    seen: dict[str, str] = {}  # key -> extensions
    for key, run in _runs(members):
        if isinstance(run, Rejected):
            yield run
            continue
        if key in seen:
            check_sorted(tar, key, seen[key].split(), run)
        else:
            seen[key] = " ".join(run)
        yield key, run


def _runs(members: Iterable[ArchiveMember | Rejected]) -> Iterator[tuple[str, dict[str, ArchiveMember] | Rejected]]:
    before = ""
    run: dict[str, ArchiveMember] = {}
    for member in members:
        if isinstance(member, Rejected):
            yield "", member
            continue
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        name, _, extension = base.partition(".")
        if not name or "__MACOSX" in folder:
            continue
        key = folder + slash + name
        if run and (key != before or extension in run):
            yield before, run
            run = {}
        before = key
        held = sum(len(other.read) for other in run.values() if isinstance(other.read, bytes))
        if isinstance(member.read, bytes) and held + len(member.read) > MAX_UNPACKED:
            member = replace(member, read=b"", rejection=("too_large", TOO_LARGE))  # noqa: PLW2901 - the rest is dropped
        run[extension] = member
    if run:
        yield before, run


def _json(members: dict[str, ArchiveMember]) -> dict[str, Any]:
    if "json" not in members:
        return {}
    known = loads(_told(members["json"]))
    if not isinstance(known, dict):
        raise ValueError("its .json is not an object")  # noqa: TRY004 - a corrupt member
    return known


def _text(members: dict[str, ArchiveMember], extension: str) -> str | None:
    if extension not in members:
        return None
    return _told(members[extension]).decode().strip() or None


def _told(member: ArchiveMember) -> bytes:
    if member.size > MAX_JSON:
        raise ValueError(f"{member.name} has more than {MAX_JSON >> 20} MiB")
    return member.content()


def _stats(file: Path) -> dict[str, int] | None:
    """Return the numbers of attempted and successful downloads, or None without a valid file."""
    try:
        found = loads(read_bytes(file))
        return {name: int(found[name]) for name in ("count", "successes")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
