"""Manifest of a shard folder: content, origin and rejected entries. Written last, atomically."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.io.atomic import read_bytes, write_atomic
from shards.io.file_names import is_plain, is_split
from shards.io.jsonl import loads
from shards.io.urls import check_url, is_url, join, read_url
from shards.redact import redact_secrets, redact_url

FORMAT = 2
NAME = "manifest.json"
REJECTED = "rejected.jsonl"
MAX_BYTES = 1 << 50  # maximum bytes of one tar; sums over many tars then stay far below 2**63


@dataclass(frozen=True)
class ShardInfo:
    """One tar: file name, split, number of samples, size in bytes, sha256 in hexadecimal digits."""

    file: str
    split: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Manifest of a shard folder. Invariant: entries == samples of all shards - extra_samples + all rejected.

    corpus: name of the corpus; terms: terms of use of its images; labels: names, whose position is the number in
    `.cls`; entries: number listed by the source; rejected: reason -> count; build: source, options, versions,
    digest; extra_samples: samples beyond the first of their entry (photos with several faces).
    """

    format: int
    corpus: str
    terms: str
    labels: tuple[str, ...]
    entries: int
    rejected: dict[str, int]
    shards: tuple[ShardInfo, ...]
    build: dict[str, Any]
    extra_samples: int = 0

    @property
    def samples(self) -> int:
        """Number of samples in all shards of all splits."""
        return sum(shard.samples for shard in self.shards)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order of the shards."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))


def index_name(file: str) -> str:
    """Return the index file name: train-000000.tar -> train-000000.idx."""
    return file.removesuffix(".tar") + ".idx"


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest.json of a folder or URL.

    Raises:
        UserError: If the folder or manifest is missing, corrupt or of another format version, or the URL cannot be
            read.
    """
    path, content = _read(folder)
    return parse_manifest(content, path)


def parse_manifest(data: bytes, path: str) -> Manifest:
    """Parse the manifest in `data`; `path` names it in messages. Raises UserError like `read_manifest`."""
    try:
        content = loads(data)
    except ValueError as error:
        raise UserError(f"shards: {path} is corrupt ({error}). Fix: rebuild the shards.") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"shards: {path} has format {found}, but this version reads {FORMAT}. Fix: rebuild the shards.")
    try:
        return _manifest(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"shards: {path} is corrupt ({error!r}). Fix: rebuild the shards.") from None


def _read(folder: str | Path) -> tuple[str, bytes]:
    """Return the manifest's location (for messages) and its bytes."""
    if is_url(folder):
        check_url(str(folder))
        url = join(str(folder), NAME)
        try:
            return redact_url(url), read_url(url)
        except FileNotFoundError:
            raise UserError(f"shards: {redact_url(url)} does not exist. Fix: run simfle shards build first.") from None
    path = Path(folder) / NAME
    if not path.parent.is_dir():
        raise UserError(f"shards: {folder} is not a folder. Fix: run simfle shards build first.")
    try:
        return str(path), read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"shards: {folder} has no {NAME}. Fix: run simfle shards build first.") from None
    except OSError as error:
        raise UserError(f"shards: cannot read {path}: {error}. Fix: check the path and its disk.") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder`/manifest.json atomically."""
    told = asdict(manifest) | {
        "build": redact_secrets(manifest.build)
    }  # names and terms come from the corpus, unredacted
    write_atomic(folder / NAME, (json.dumps(told, indent=1) + "\n").encode())


def _manifest(content: Mapping[str, Any]) -> Manifest:
    shards = tuple(_shard(item) for item in content["shards"])
    labels = tuple(_typed(name, str) for name in content["labels"])
    rejected = {_typed(reason, str): _typed(count, int) for reason, count in content["rejected"].items()}
    if len({shard.file for shard in shards}) != len(shards) or len(set(labels)) != len(labels):
        raise ValueError("a shard or a label is listed twice")
    return Manifest(
        format=FORMAT,
        corpus=_typed(content["corpus"], str),
        terms=_typed(content["terms"], str),
        labels=labels,
        entries=_typed(content["entries"], int),
        rejected=rejected,
        shards=shards,
        build=_typed(content["build"], dict),
        extra_samples=_typed(content.get("extra_samples", 0), int),
    )


def _shard(item: Mapping[str, Any]) -> ShardInfo:
    file = _typed(item["file"], str)
    # A manifest may be untrusted: its names must not lead outside its folder or a folder derived from it.
    if not is_plain(file) or not file.endswith(".tar"):
        raise ValueError(f"{file!r} is not a plain tar file name")
    split = _typed(item["split"], str)
    if not is_split(split):
        raise ValueError(f"{file}: {split!r} is not a split name")
    samples, size = _typed(item["samples"], int), _typed(item["bytes"], int)
    if samples < 0 or not 0 <= size <= MAX_BYTES:
        raise ValueError(f"{file}: number of samples or bytes is out of range")
    if samples > size:
        raise ValueError(f"{file}: {samples} samples do not fit into {size} bytes")
    return ShardInfo(file, split, samples, size, _typed(item["sha256"], str))


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
