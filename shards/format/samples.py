"""Read samples of existing shards one by one, and write chosen samples to a new folder of shards."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.format.external_tars import is_external_manifest
from shards.format.index import write_index
from shards.format.manifest import Manifest, ShardInfo
from shards.format.shard_reader import check_size, open_tar, shard_index
from shards.format.tar_writer import TarShardWriter
from shards.io.atomic import publish_dir, resolve_output_dir
from shards.io.hashing import digest
from shards.io.jsonl import MAX_JSON, loads
from shards.io.locks import lock_dir
from shards.io.staging import refuse_foreign_files


@dataclass(frozen=True)
class StoredSample:
    """One sample: key and members (extension -> content), in tar order."""

    key: str
    members: dict[str, bytes]

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata from the json member, or {} if there is none. Raises UserError if it is corrupt."""
        try:
            told = self.members.get("json", b"{}")
            if len(told) > MAX_JSON:
                raise ValueError(f"more than {MAX_JSON >> 20} MiB")  # noqa: TRY301 - handled like other corruption
            known = loads(told)
        except ValueError as error:
            raise UserError(f"shards: {self.key}.json is corrupt ({error}). Fix: rebuild the shards.") from None
        if not isinstance(known, dict):
            raise UserError(f"shards: {self.key}.json is not an object. Fix: rebuild the shards.")
        return known

    def label(self, names: Sequence[str]) -> str:
        """Return the label name: `.cls` as a position in `names` (from the manifest), else the json's label, or "".

        Other tools also write words to `.cls`. Without `names`, a word in `.cls` is the label; a number is
        ignored, and the label comes from the JSON.
        """
        content = self.members.get("cls")
        if content is not None and names:
            return names[label_number(content, len(names), self.key)]
        word = (content or b"").decode("utf-8", "replace").strip()
        if word and not word.removeprefix("-").isdigit():
            return word
        label = self.metadata.get("label")
        return "" if label is None else str(label)


def label_number(content: bytes, labels: int, where: str) -> int:
    """Parse the number in a `.cls`; labels: number of labels in the manifest (0 = any); where: place, for messages.

    Raises:
        UserError: If the content is not a number, or is not the number of a label.
    """
    try:
        number = int(content)
    except ValueError:
        raise UserError(
            f"shards: {where}.cls contains {content[:20]!r}, not a number. Fix: rebuild the shards."
        ) from None
    if number < 0 or (labels and number >= labels):
        raise UserError(f"shards: {where}.cls is {number}, but there are {labels} labels. Fix: rebuild the shards.")
    return number


def read_samples(
    folder: Path, info: ShardInfo, chosen: Iterable[int] | None = None, only: Sequence[str] = ()
) -> Iterator[StoredSample]:
    """Yield the samples of a shard in tar order.

    Args:
        folder: folder of the shards.
        info: the shard.
        chosen: positions in the shard; None = all.
        only: lower-case extensions to read; empty = all.

    Raises:
        UserError: If the tar or its index is missing or does not match the manifest.
    """
    index = shard_index(folder, info)
    path = folder / info.file
    try:
        tar = open_tar(path)
    except OSError as error:
        raise UserError(f"shards: {path} cannot be read ({error}). Fix: copy it again.") from None
    with tar:
        check_size(path, tar.size, info)
        for number in range(len(index)) if chosen is None else chosen:
            try:
                members = tar.read_members(index, number, only)
            except OSError as error:
                raise UserError(f"shards: {path} cannot be read ({error.strerror}). Fix: copy it again.") from None
            yield StoredSample(index.keys[number], members)


def select_shards(manifest: Manifest, splits: Sequence[str], option: str) -> list[ShardInfo]:
    """Return the shards of the named splits (empty = all). Raises UserError for an unknown split."""
    for split in splits:
        if split not in manifest.splits:
            raise UserError(
                f"{option}: no split {split!r} in these shards. Fix: choose one of {', '.join(manifest.splits)}."
            )
    return [info for info in manifest.shards if not splits or info.split in splits]


def content_digest(shards: Iterable[ShardInfo]) -> str:
    """Return 16 hexadecimal digits that identify the content of shards, independent of their location."""
    return digest([(info.split, info.samples, info.sha256) for info in shards])


def provenance(*manifests: Manifest) -> dict[str, Any]:
    """Return the provenance of derived shards, for the manifest's `build`.

    Shards derived from external samples count as external: verify would otherwise expect members that only
    `simfle shards build` writes.
    """
    source = next((manifest.build["source"] for manifest in manifests if is_external_manifest(manifest)), None)
    came = [
        {"corpus": manifest.corpus, "content": content_digest(manifest.shards), "build": manifest.build}
        for manifest in manifests
    ]
    return {"from": came} | ({"source": source} if source else {})


@contextmanager
def staged_output_dir(out: Path) -> Iterator[Path]:
    """Yield a staging folder for shards: renamed to `out` at the end of the block, deleted on an exception.

    Files left by a killed process are deleted.

    Raises:
        UserError: If `out` exists, is being written by another process, or cannot be created.
    """
    out = resolve_output_dir(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists. Fix: choose another output, or delete it.")
    partial = out.with_name(out.name + ".partial")
    if (partial / "work").exists():
        raise UserError(f"{partial} holds an unfinished build. Fix: resume it, or choose another output.")
    refuse_foreign_files(partial, build=False)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{partial} cannot be created ({error.strerror}). Fix: choose another output.") from None
    with lock_dir(partial):
        for left in partial.iterdir():
            left.unlink()
        try:
            yield partial
            publish_dir(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def write_split(
    folder: Path, split: str, count: int, samples: Iterator[StoredSample], shard_samples: int
) -> Iterator[ShardInfo]:
    """Write `count` samples as shards of a split, of nearly equal size and at most `shard_samples` each."""
    number = -(-count // shard_samples)
    starts = [place * count // number for place in range(number + 1)] if count else [0]
    for place, (first, last) in enumerate(pairwise(starts)):
        yield write_shard(folder / f"{split}-{place:06d}.tar", split, islice(samples, last - first))


def write_shard(path: Path, split: str, samples: Iterable[StoredSample]) -> ShardInfo:
    """Write one tar and its index; members are copied unchanged. Raises UserError for a disk error."""
    try:
        tar = TarShardWriter(path)
        try:
            for sample in samples:
                tar.add(sample.key, sample.members)
            written = tar.finish()
        finally:
            tar.abort()
        write_index(path.with_suffix(".idx"), written.index)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}). Fix: free some space.") from None
    return ShardInfo(path.name, split, len(written.index), written.bytes, written.sha256)
