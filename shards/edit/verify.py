"""Verify a folder of shards against its manifest: sizes, hashes, indexes, samples, images, rejects."""

import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shards.edit.remove import REMOVAL_LOG, STAGING
from shards.entry import REJECT_REASONS
from shards.errors import UserError
from shards.format import external_tars
from shards.format.index import Index, index_tar, is_same_index, read_index
from shards.format.manifest import NAME, REJECTED, Manifest, ShardInfo, index_name, read_manifest
from shards.format.shard_reader import open_tar
from shards.imaging.codec import FORMATS, ImageRejected, check_cost
from shards.io.atomic import open_regular
from shards.io.hashing import hash_file
from shards.io.jsonl import loads, loads_object
from shards.io.urls import download, is_url, join, list_names
from shards.io.worker_pool import parallel_map
from shards.rules import keyed_hash

MAX_PROBLEMS = 20  # maximum number of problems reported per shard
CHUNK = 1 << 20


@dataclass
class ShardCheck:
    """Findings in one shard. keys, groups: 8-byte hashes, one per sample; groups only for samples that have one."""

    info: ShardInfo
    decoded: int = 0
    problems: list[str] = field(default_factory=list)
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    groups: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass
class VerifyReport:
    """Result of a verification. problems: one line each with a file name (empty = valid); notes: other findings."""

    manifest: Manifest
    decoded: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(folder: str | Path, decode: float, workers: int, progress: Callable[[int], None]) -> VerifyReport:
    """Verify a folder or URL shard by shard; decode a fraction of the images, always the same images.

    Args:
        folder: folder or URL of the shards.
        decode: fraction of the images to decode, 0 to 1.
        workers: number of processes.
        progress: called with the number of samples done.

    Raises:
        UserError: If the manifest cannot be read, or `decode` is not in [0, 1].
    """
    if not 0 <= decode <= 1:
        raise UserError(f"--decode={decode:g}: must be in [0, 1]. Fix: pass 1 for all images or 0 for none.")
    manifest = read_manifest(folder)
    verdict = VerifyReport(manifest)
    keys: list[NDArray[np.uint64]] = []
    groups: dict[str, NDArray[np.uint64]] = {}
    done = 0
    for checked in _check_all(folder, manifest, decode, workers):
        verdict.problems += checked.problems
        verdict.decoded += checked.decoded
        keys.append(checked.keys)
        known = groups.get(checked.info.split, np.empty(0, np.uint64))
        groups[checked.info.split] = np.union1d(known, checked.groups)
        done += checked.info.samples
        progress(done)
    # External shards may use a key twice.
    (verdict.notes if external_tars.is_external_manifest(manifest) else verdict.problems).extend(_repeated(keys))
    with _local(folder, [REJECTED]) as copy:
        verdict.problems += _rejects(copy, manifest)
    wrong, left = _unexpected_files(folder, manifest)
    verdict.problems += wrong
    verdict.notes += [*_divided(groups), *left]
    return verdict


@contextmanager
def _local(folder: str | Path, names: list[str]) -> Iterator[Path]:
    """Yield a local folder with these files: `folder` itself, or temporary copies if `folder` is a URL."""
    if not is_url(folder):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        for name in names:
            # Missing files are reported later.
            with suppress(FileNotFoundError):
                download(join(str(folder), name), Path(temporary) / name)
        yield Path(temporary)


def _check_all(folder: str | Path, manifest: Manifest, decode: float, workers: int) -> Iterator[ShardCheck]:
    check = partial(
        check_shard,
        folder,
        labels=manifest.labels,
        decode=decode,
        ours=not external_tars.is_external_manifest(manifest),
    )
    yield from parallel_map(check, manifest.shards, workers)


def check_shard(
    folder: str | Path, info: ShardInfo, labels: tuple[str, ...], decode: float, ours: bool = True
) -> ShardCheck:
    """Verify one tar and its index. ours: also check the members that a build writes beside the images."""
    with _local(folder, [info.file, index_name(info.file)]) as copy:
        return _check_shard(copy, info, labels, decode, ours)


def _check_shard(folder: Path, info: ShardInfo, labels: tuple[str, ...], decode: float, ours: bool) -> ShardCheck:
    checked = ShardCheck(info)
    path = folder / info.file
    try:
        size, digest = _hash(path)
    except OSError as error:
        checked.problems.append(f"{info.file}: {error.strerror}")
        return checked
    if size != info.bytes:
        checked.problems.append(f"{info.file}: {size} bytes, the manifest says {info.bytes}")
    elif digest != info.sha256:
        checked.problems.append(f"{info.file}: its sha256 differs from the manifest's")
    try:
        index = index_tar(path) if ours else external_tars.scan_tar(path).index
        listed = read_index(folder / index_name(info.file))
    except UserError as error:
        checked.problems.append(f"{info.file}: {error}")
        return checked
    if not is_same_index(index, listed):
        checked.problems.append(f"{index_name(info.file)}: does not match the samples in {info.file}")
    if len(index) != info.samples:
        checked.problems.append(f"{info.file}: {len(index)} samples, the manifest says {info.samples}")
    try:
        _check_samples(path, index, labels, decode, ours, checked)
    except UserError as error:
        checked.problems.append(f"{info.file}: {error}")
    if len(checked.problems) > MAX_PROBLEMS:
        more = len(checked.problems) - MAX_PROBLEMS
        checked.problems[MAX_PROBLEMS:] = [f"{info.file}: and {more} more problems"]
    return checked


def _hash(path: Path) -> tuple[int, str]:
    with open_regular(path, "rb") as file:
        digest = hash_file(file)
        return file.tell(), digest


def _check_samples(
    path: Path, index: Index, labels: tuple[str, ...], decode: float, ours: bool, checked: ShardCheck
) -> None:
    groups = []
    with open_tar(path) as tar:
        for sample, key in enumerate(index.keys):
            try:
                members = tar.read_members(index, sample)
            except OSError as error:
                raise UserError(f"shards: {path} cannot be read ({error.strerror}). Fix: copy it again.") from None
            wanted = _share(key) < decode
            checked.decoded += wanted
            if ours:
                known, problem = _check_sample(key, members, labels, checked.info.split, wanted)
            else:
                known, problem = {}, _check_foreign(members) if wanted else ""
            if problem:
                checked.problems.append(f"{path.name}: {key}: {problem}")
            if known.get("group") is not None:
                groups.append(str(known["group"]))
    checked.keys = _hashes(index.keys)
    checked.groups = np.unique(_hashes(groups))


def _check_sample(
    key: str, members: dict[str, bytes], labels: tuple[str, ...], split: str, decode: bool
) -> tuple[dict[str, Any], str]:
    """Return the sample's json and its problem ("" if there is none)."""
    if "jpg" not in members or "json" not in members:
        return {}, f"has no jpg or no json (only {', '.join(members)})"
    try:
        known = loads(members["json"])
        label = known.get("label")
    except (ValueError, AttributeError) as error:
        return {}, f"its json is corrupt ({error})"
    number = members.get("cls", b"").decode("ascii", "replace")
    if known.get("key") != key or known.get("split") != split:
        return known, f"its json describes {known.get('key')!r} in split {known.get('split')!r}"
    if number != ("" if label is None else str(labels.index(label)) if label in labels else None):
        return known, f"cls {number or 'absent'!r} does not match label {label!r}"
    return known, _check_image(members["jpg"], known) if decode else ""


def _check_foreign(members: dict[str, bytes]) -> str:
    content = members[external_tars.image_extension(members) or ""]
    try:
        check_cost(content)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.load()
    except (ImageRejected, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"its image is corrupt ({error})"
    return ""


def _check_image(jpeg: bytes, known: dict[str, Any]) -> str:
    try:
        check_cost(jpeg)
        colors = simplejpeg.decode_jpeg_header(jpeg, strict=True)[2]
        height, width = simplejpeg.decode_jpeg(jpeg, "RGB", strict=True).shape[:2]
    except (ImageRejected, ValueError) as error:
        return f"its image is corrupt ({error})"
    if colors not in ("YCbCr", "RGB"):
        return f"its image is {colors}, not RGB"
    if [width, height] != [known.get("width"), known.get("height")]:
        return f"its image is {width} x {height}, its json says {known.get('width')} x {known.get('height')}"
    return ""


def _share(key: str) -> float:
    return int.from_bytes(keyed_hash(key, "verify")[:8], "big") / 2**64


def _hashes(names: list[str] | tuple[str, ...]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(keyed_hash(name, "verify")[:8] for name in names), np.uint64)


def _repeated(keys: list[NDArray[np.uint64]]) -> list[str]:
    every = np.sort(np.concatenate(keys)) if keys else np.empty(0, np.uint64)
    count = int((every[1:] == every[:-1]).sum())
    return [f"{NAME}: {count} keys occur twice; keys must be unique over all shards"] if count else []


def _divided(groups: dict[str, NDArray[np.uint64]]) -> list[str]:
    every = np.concatenate(list(groups.values())) if groups else np.empty(0, np.uint64)
    count = int((np.unique(every, return_counts=True)[1] > 1).sum())
    return [f"{count} groups have samples in more than one split"] if count else []


def _rejects(folder: Path, manifest: Manifest) -> Iterator[str]:
    counts: Counter[str] = Counter()
    try:
        with open_regular(folder / REJECTED) as lines:
            counts.update(str(loads_object(line)["reason"]) for line in lines)
    except (OSError, ValueError, KeyError) as error:
        yield f"{REJECTED}: cannot be read ({error})"
        return
    if dict(counts) != manifest.rejected:
        yield f"{REJECTED}: counts by reason are {dict(counts)}, the manifest says {manifest.rejected}"
    if unknown := set(counts) - set(REJECT_REASONS):
        yield f"{REJECTED}: unknown reasons {sorted(unknown)}"
    first = manifest.samples - manifest.extra_samples
    if manifest.entries != first + sum(manifest.rejected.values()):
        yield f"{NAME}: {manifest.entries} entries are not {first} samples and {manifest.rejected} rejected"


def _unexpected_files(folder: str | Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return problems and notes about files that are not in the manifest.

    Programs that read *.tar would read unlisted tars. The files of an interrupted removal show people who asked to be
    removed. Other files are harmless, but unchecked.
    """
    known = {NAME, REJECTED, REMOVAL_LOG}
    known |= {name for shard in manifest.shards for name in (shard.file, index_name(shard.file))}
    listed = list_names(str(folder)) if is_url(folder) else sorted(path.name for path in Path(folder).iterdir())
    found = [name for name in listed or () if name not in known]
    if STAGING in found:
        return [f"{STAGING}: a removal was interrupted. Fix: rerun the same simfle shards remove command."], []
    wrong = [f"{name}: not in the manifest" for name in found if name.endswith((".tar", ".idx"))]
    left = [f"{name}: left by a killed process. Fix: delete it" for name in found if name.endswith(".tmp")]
    others = [name for name in found if not name.endswith((".tar", ".idx", ".tmp"))]
    if others and not external_tars.is_external_manifest(manifest):  # external shards come with other files
        more = f" and {len(others) - MAX_PROBLEMS} more" if len(others) > MAX_PROBLEMS else ""
        left.append(f"unrelated files: {', '.join(others[:MAX_PROBLEMS])}{more}")
    return wrong, left
