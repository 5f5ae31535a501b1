"""Folders of tars written by other tools (webdataset's ShardWriter, img2dataset): find usable samples, write a
manifest.

A sample is usable if it has an image in a format that all backends decode. This module neither decodes images nor turns
them upright; to check every image, build shards from such a folder.
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
from shards.format.index import Index, index_tar, is_same_index, make_index, read_index, split_name, write_index
from shards.format.manifest import (
    FORMAT,
    NAME,
    REJECTED,
    Manifest,
    ShardInfo,
    index_name,
    read_manifest,
    write_manifest,
)
from shards.io.atomic import open_regular, write_atomic
from shards.io.file_names import is_plain
from shards.io.hashing import hash_file
from shards.io.worker_pool import parallel_map
from shards.rules import SPLIT_NAMES, TEST, TRAIN, VAL

IMAGES = ("jpg", "jpeg", "png", "webp")  # lower-case extensions of image members; the first one present wins
SPLITS = {name: name for name in (TRAIN, VAL, TEST)} | SPLIT_NAMES
KIND = "foreign"
MAX_LABELS = 100_000  # or the number of samples, if greater; larger numbers are ids, whose names would fill the memory
_SIGNATURES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP", re.DOTALL)
_LONGEST = 12


@dataclass(frozen=True)
class TarScan:
    """Scan of one tar: the index of its usable samples, the rejected samples, and the content of its .cls members.

    all_numbers: whether all .cls are numbers; max_label: the largest number, -1 without .cls; labels: all .cls, in
    order, one per line.
    """

    index: Index
    rejected: tuple[Rejected, ...]
    all_numbers: bool
    max_label: int
    labels: bytes


def image_extension(extensions: Iterable[str]) -> str | None:
    """Return the extension of a sample's image member, one of `IMAGES` in any case."""
    known = {extension.lower(): extension for extension in reversed(list(extensions))}
    return next((known[name] for name in IMAGES if name in known), None)


def is_external(folder: Path) -> bool:
    """Return whether a folder contains tars but no manifest."""
    return folder.is_dir() and not (folder / NAME).exists() and any(folder.glob("*.tar"))


def is_external_manifest(manifest: Manifest) -> bool:
    """Return whether a manifest describes external tars."""
    source = manifest.build.get("source")
    return isinstance(source, dict) and source.get("kind") == KIND


def scan_tar(tar: Path) -> TarScan:
    """Index a tar and check the first bytes of each image.

    Raises:
        UserError: If the tar is invalid or cannot be read.
    """
    outside: dict[str, None] = {}  # keys, in their order
    again: list[str] = []  # members with a repeated name
    index = index_tar(tar, lambda name: outside.setdefault(split_name(name)[0]), again.append)
    keep = np.zeros(len(index), bool)
    seen: dict[str, frozenset[str]] = {}  # key -> extensions
    rejected = [Rejected(f"{tar.name}: {key}", "outside", "a path outside the archive") for key in outside]
    rejected += [Rejected(f"{tar.name}: {name}", "repeated") for name in again]
    top, numbered, labels = -1, True, bytearray()
    with open_regular(tar, "rb") as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        for sample, key in enumerate(index.keys):
            members = index.members(sample)
            name = image_extension(members)
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
                rejected.append(
                    Rejected(f"{tar.name}: {key}", "not_an_image", f"its {name} is not a JPEG, PNG or WebP")
                )
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
    return TarScan(usable, tuple(rejected), numbered, top, bytes(labels))


def check_sorted(tar: Path, key: str, before: Collection[str], members: Iterable[str]) -> None:
    """Raise UserError if a key recurs with other extensions: the members of its sample are not adjacent."""
    if not set(before) & set(members):
        raise UserError(
            f"shards: {tar} is not sorted: the members of {key!r} ({', '.join([*before, *members])}) are not adjacent. "
            "Fix: use tar --sort=name to repack it."
        )


def split_from_name(file: str) -> str:
    """Infer the split: val for 'val-000000.tar' or 'faces-dev-000000.tar'; train if the name contains no split.

    The last split name wins, because a corpus name at the start may contain one.
    """
    words = re.split(r"[\W\d_]+", file.removesuffix(".tar").lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), TRAIN)


def list_tars(folder: Path) -> list[Path]:
    """Return the tars of a folder by name. Raises UserError if the folder contains no tar."""
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise UserError(f"shards={folder}: contains no .tar. Fix: pass a folder of shards.")
    for tar in tars:
        if not is_plain(tar.name):
            raise UserError(f"shards={folder}: {tar.name!r} is not a valid shard name. Fix: rename this tar.")
    return tars


def shard_info(tar: Path, scan: TarScan, sha256: str) -> ShardInfo:
    """Return a tar's manifest entry."""
    return ShardInfo(tar.name, split_from_name(tar.name), len(scan.index), tar.stat().st_size, sha256)


def make_manifest(
    folder: Path, scans: Iterable[tuple[ShardInfo, TarScan]], terms: str = ""
) -> tuple[Manifest, list[Rejected]]:
    """Return the manifest of a folder of scanned tars, and all rejected samples."""
    infos: list[ShardInfo] = []
    rejected: list[Rejected] = []
    counts: Counter[str] = Counter()
    top, numbered = -1, True
    for info, found in scans:
        infos.append(info)
        rejected += found.rejected
        counts.update(item.reason for item in found.rejected)
        numbered, top = numbered and found.all_numbers, max(top, found.max_label)
    samples = sum(info.samples for info in infos)
    if not samples:
        raise UserError(
            f"shards={folder}: no sample in its tars has an image ({', '.join(IMAGES)}). Fix: pass other shards."
        )
    manifest = Manifest(
        format=FORMAT,
        corpus=folder.resolve().name,
        terms=terms,
        labels=tuple(str(number) for number in range(top + 1)) if numbered and top <= max(samples, MAX_LABELS) else (),
        entries=samples + len(rejected),
        rejected=dict(sorted(counts.items())),
        shards=tuple(infos),
        build={"source": {"kind": KIND, "name": folder.resolve().name}},
    )
    return manifest, rejected


def infer_manifest(folder: Path) -> Manifest:
    """Infer the manifest of a folder of external tars from headers and labels.

    Reading every byte would take too long, so a tar's "sha256" covers its size, its sample offsets and its labels,
    which can be corrected without changing the others.
    """

    def examined() -> Iterator[tuple[ShardInfo, TarScan]]:
        for tar in list_tars(folder):
            found = scan_tar(tar)
            digest = hashlib.sha256(f"{tar.stat().st_size} {found.index.keys}".encode("utf-8", "surrogateescape"))
            digest.update(found.index.offsets.tobytes() + found.index.sizes.tobytes() + found.labels)
            yield shard_info(tar, found, digest.hexdigest()), found

    return make_manifest(folder, examined())[0]


def index_folder(folder: Path, terms: str, workers: int, overwrite: bool, progress: Callable[[int], None]) -> Manifest:
    """Write an index beside each tar, `rejected.jsonl` and the manifest, so that nothing needs to be inferred again.

    Args:
        folder: folder of external tars.
        terms: terms of use of the images.
        workers: number of processes.
        overwrite: replace different indexes and a manifest of external tars.
        progress: called with the number of tars done.

    Raises:
        UserError: If there are no tars, a manifest or a different index exists, an index cannot store a key, or no
            sample is usable.
    """
    tars = list_tars(folder)
    if (folder / NAME).exists() and not (overwrite and is_external_manifest(read_manifest(folder))):
        raise UserError(f"shards={folder}: has a {NAME}. Fix: use the folder as it is, or add --overwrite.")
    examined = []
    for done, item in enumerate(parallel_map(partial(_index_tar, overwrite=overwrite), tars, workers), 1):
        examined.append(item)
        progress(done)
    manifest, rejected = make_manifest(folder, examined, terms)
    write_atomic(folder / REJECTED, "".join(json.dumps(asdict(item)) + "\n" for item in rejected).encode())
    write_manifest(folder, manifest)
    return manifest


def _index_tar(tar: Path, overwrite: bool) -> tuple[ShardInfo, TarScan]:
    """Read a tar in full and write its index."""
    found = scan_tar(tar)
    spaced = next((key for key in found.index.keys if " " in key or "\n" in key), None)
    if spaced is not None:
        raise UserError(
            f"shards: {tar}: the key {spaced!r} has a space, which DALI's index format cannot store. "
            "Fix: read this folder without a manifest, or build shards from it."
        )
    path = tar.with_name(index_name(tar.name))
    if path.exists() and not overwrite and not is_same_index(read_index(path), found.index):
        raise UserError(f"shards: {path} exists with other content. Fix: add --overwrite to replace it.")
    write_index(path, found.index)
    # The samples are no longer needed; do not pickle them.
    return shard_info(tar, found, hash_file(tar)), replace(found, index=make_index(()), labels=b"")
