"""Folders of tars that others wrote (webdataset's ShardWriter, img2dataset): what in them can be used, and a manifest.

A sample can be used if it has an image in one of the formats that all backends decode. Nothing is decoded here, and
nothing is turned upright: who wants every image checked builds shards from such a folder.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from shards.entry import Rejected
from shards.errors import UserError
from shards.files import open_regular, write_atomic
from shards.index import Index, index_tar, make_index, read_index, same, split_name, write_index
from shards.manifest import FORMAT, NAME, REJECTED, Manifest, ShardInfo, index_name, read_manifest, write_manifest
from shards.names import is_plain
from shards.processes import on_processes
from shards.rules import SPLIT_NAMES, TEST, TRAIN, VAL

IMAGES = ("jpg", "jpeg", "png", "webp")  # extensions of image members, in lower case; the first one there counts
SPLITS = {name: name for name in (TRAIN, VAL, TEST)} | SPLIT_NAMES
KIND = "foreign"
MOST_LABELS = 100_000  # unless there are more samples: a larger number is some id, and its names would fill the memory
_SIGNATURES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP", re.DOTALL)
_LONGEST = 12


@dataclass(frozen=True)
class Found:
    """One tar: the index of what can be used, what cannot, and what its .cls members say.

    numbered: whether all of these are numbers; top: the largest one, -1 where there are none; labels: all of them, in
    order, a line each.
    """

    index: Index
    rejected: tuple[Rejected, ...]
    numbered: bool
    top: int
    labels: bytes


def image_of(extensions: Iterable[str]) -> str | None:
    """The extension of a sample's image member, one of `IMAGES` in whatever case."""
    known = {extension.lower(): extension for extension in reversed(list(extensions))}
    return next((known[name] for name in IMAGES if name in known), None)


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds tars but no manifest."""
    return folder.is_dir() and not (folder / NAME).exists() and any(folder.glob("*.tar"))


def describes(manifest: Manifest) -> bool:
    """Whether a manifest is of foreign tars."""
    source = manifest.build.get("source")
    return isinstance(source, dict) and source.get("kind") == KIND


def examine(tar: Path) -> Found:
    """Index a tar and look at the first bytes of each image.

    Raises:
        UserError: not a tar, or not readable.
    """
    outside: dict[str, None] = {}  # keys, in their order
    again: list[str] = []  # members whose name was there before
    index = index_tar(tar, lambda name: outside.setdefault(split_name(name)[0]), again.append)
    keep = np.zeros(len(index), bool)
    seen: dict[str, frozenset[str]] = {}  # key -> extensions
    rejected = [Rejected(f"{tar.name}: {key}", "outside", "a path that leaves the archive") for key in outside]
    rejected += [Rejected(f"{tar.name}: {name}", "repeated") for name in again]
    top, numbered, labels = -1, True, bytearray()
    with open_regular(tar, "rb") as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        for sample, key in enumerate(index.keys):
            members = index.members(sample)
            name = image_of(members)
            if key in seen:
                check_sorted(tar, key, seen[key], members)
                rejected += [Rejected(f"{tar.name}: {key}.{extension}", "repeated") for extension in members]
                continue
            seen[key] = frozenset(members)
            if name is None:
                rejected.append(Rejected(f"{tar.name}: {key}", "no_image", f"only {', '.join(members)}"))
            elif not members[name].size:
                rejected.append(Rejected(f"{tar.name}: {key}", "empty"))
            elif not _SIGNATURES.match(read(members[name].offset, _LONGEST)):
                rejected.append(Rejected(f"{tar.name}: {key}", "not_an_image", f"its {name} is no JPEG, PNG or WebP"))
            else:
                keep[sample] = True
                if "cls" in members:
                    number = read(members["cls"].offset, min(members["cls"].size, 20)).strip()
                    labels += number + b"\n"
                    numbered &= number.isdigit()
                    top = max(top, int(number)) if numbered else top
    usable = make_index(
        (item.name, item.offset, item.size)
        for sample in np.flatnonzero(keep).tolist()
        for item in index.members(sample).values()
    )
    return Found(usable, tuple(rejected), numbered, top, bytes(labels))


def check_sorted(tar: Path, key: str, before: Collection[str], members: Iterable[str]) -> None:
    """Raise UserError where a key comes again with other extensions: its sample lies in several parts of the tar."""
    if not set(before) & set(members):
        raise UserError(
            f"shards: {tar} is not sorted: the members of {key!r} ({', '.join([*before, *members])}) are not side by "
            "side. Fix: pack it again with tar --sort=name"
        )


def split_of(file: str) -> str:
    """val of 'val-000000.tar' or 'faces-dev-000000.tar'; train where the name says nothing.

    Of several words that name a split the last one counts: a corpus, whose name comes first, may have one in it.
    """
    words = re.split(r"[\W\d_]+", file.removesuffix(".tar").lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), TRAIN)


def tars_in(folder: Path) -> list[Path]:
    """The tars of a folder by name. Raises UserError where there are none."""
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise UserError(f"shards: {folder} has no .tar in it")
    for tar in tars:
        if not is_plain(tar.name):
            raise UserError(f"shards={folder}: {tar.name!r} cannot name a shard. Fix: rename this tar")
    return tars


def shard_info(tar: Path, found: Found, sha256: str) -> ShardInfo:
    """What a manifest says of one tar."""
    return ShardInfo(tar.name, split_of(tar.name), len(found.index), tar.stat().st_size, sha256)


def make_manifest(
    folder: Path, examined: Iterable[tuple[ShardInfo, Found]], terms: str = ""
) -> tuple[Manifest, list[Rejected]]:
    """The manifest of a folder of examined tars, and all that cannot be used."""
    infos: list[ShardInfo] = []
    rejected: list[Rejected] = []
    counts: Counter[str] = Counter()
    top, numbered = -1, True
    for info, found in examined:
        infos.append(info)
        rejected += found.rejected
        counts.update(item.reason for item in found.rejected)
        numbered, top = numbered and found.numbered, max(top, found.top)
    samples = sum(info.samples for info in infos)
    if not samples:
        raise UserError(f"shards: {folder} has no sample with an image ({', '.join(IMAGES)}) in its tars")
    manifest = Manifest(
        format=FORMAT,
        corpus=folder.resolve().name,
        terms=terms,
        labels=tuple(str(number) for number in range(top + 1)) if numbered and top <= max(samples, MOST_LABELS) else (),
        entries=samples + len(rejected),
        rejected=dict(sorted(counts.items())),
        shards=tuple(infos),
        build={"source": {"kind": KIND, "name": folder.resolve().name}},
    )
    return manifest, rejected


def synthesise(folder: Path) -> Manifest:
    """The manifest of a folder of foreign tars, made on the spot.

    Reading every byte would take too long here: a tar's "sha256" is that of its size, of where its samples lie, and of
    their labels, which may be mended without any change of these.
    """

    def examined() -> Iterator[tuple[ShardInfo, Found]]:
        for tar in tars_in(folder):
            found = examine(tar)
            digest = hashlib.sha256(f"{tar.stat().st_size} {found.index.keys}".encode("utf-8", "surrogateescape"))
            digest.update(found.index.offsets.tobytes() + found.index.sizes.tobytes() + found.labels)
            yield shard_info(tar, found, digest.hexdigest()), found

    return make_manifest(folder, examined())[0]


def index_folder(folder: Path, terms: str, workers: int, overwrite: bool, progress: Callable[[int], None]) -> Manifest:
    """Write an index beside each tar, `rejected.jsonl` and the manifest, so that nothing is made on the spot any more.

    overwrite: replace indexes that say something else, and a manifest of foreign tars. `progress` gets the tars done.

    Raises:
        UserError: no tars, a manifest or other indexes are there, a key that an index cannot hold, no usable sample.
    """
    tars = tars_in(folder)
    if (folder / NAME).exists() and not (overwrite and describes(read_manifest(folder))):
        raise UserError(f"shards: {folder} has a {NAME} already; there is nothing to do (or give --overwrite)")
    examined = []
    for done, item in enumerate(on_processes(partial(_index_tar, overwrite=overwrite), tars, workers), 1):
        examined.append(item)
        progress(done)
    manifest, rejected = make_manifest(folder, examined, terms)
    write_atomic(folder / REJECTED, "".join(json.dumps(asdict(item)) + "\n" for item in rejected).encode())
    write_manifest(folder, manifest)
    return manifest


def _index_tar(tar: Path, overwrite: bool) -> tuple[ShardInfo, Found]:
    """Read a tar in full, and write its index."""
    found = examine(tar)
    spaced = next((key for key in found.index.keys if " " in key or "\n" in key), None)
    if spaced is not None:
        raise UserError(
            f"shards: {tar}: the key {spaced!r} has a space, which DALI's index format cannot hold; "
            "read this folder without a manifest, or build shards from it"
        )
    path = tar.with_name(index_name(tar.name))
    if path.exists() and not overwrite and not same(read_index(path), found.index):
        raise UserError(f"shards: {path} is there and says something else; give --overwrite to replace it")
    write_index(path, found.index)
    digest = hashlib.sha256()
    with open_regular(tar, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    # The samples are not needed any more, and would have to be sent from a process.
    return shard_info(tar, found, digest.hexdigest()), replace(found, index=make_index(()), labels=b"")
