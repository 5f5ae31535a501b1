"""Remove samples from finished shards: on a person's request, or because they are duplicates or wrong.

The affected shards are rewritten without these samples under new names. The new manifest makes the new shards valid;
then the old shards are deleted. All new files are first prepared in SHARDS/.removal. A process killed at any time
therefore leaves either the old or the new samples readable, and the next start undoes or finishes the removal.

Positions shift: global sample ids then refer to other images. A run identifies its data by the hashes of the shards. It
stops with an error instead of resuming with the new shards, because its position in them is unknown. Export its
backbone, or start a new run.
"""

import json
import re
import shlex
import shutil
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

from shards.edit.reject_matching import rejects_naming
from shards.errors import UserError
from shards.format.manifest import NAME, REJECTED, Manifest, ShardInfo, index_name, read_manifest, write_manifest
from shards.format.samples import read_samples, write_shard
from shards.format.shard_reader import shard_index
from shards.io.atomic import fsync_dir, read_bytes, read_text, write_atomic
from shards.io.file_names import is_plain
from shards.io.jsonl import loads_object
from shards.io.locks import lock_dir
from shards.rules import keyed_hash, normalize_unicode

STAGING = ".removal"
READY = "ready.json"
REMOVAL_LOG = "removed.jsonl"
MAX_NAMED = 5


@dataclass
class RemovalReport:
    """Result of a removal. samples: number removed; shards: number rewritten or deleted.

    anonymized_rejects: rejects that named removed samples; already: number of requested keys (1 for the person) that
    had been removed before; resumed: "finished" or "undone" if an interrupted removal was found.
    """

    samples: int = 0
    shards: int = 0
    anonymized_rejects: int = 0
    already: int = 0
    resumed: str = ""


@dataclass
class _Found:
    """Location of the samples. positions: file -> positions in that shard."""

    positions: dict[str, list[int]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)

    @property
    def samples(self) -> int:
        """Number of samples, counted with repetition: external shards may use a key several times."""
        return sum(map(len, self.positions.values()))


def remove_samples(
    folder: Path, keys: Iterable[str] = (), person: str | None = None, reason: str = ""
) -> RemovalReport:
    """Remove the samples with these keys, or all samples of a person (the group of that exact name).

    Names are compared in NFC: shards of earlier versions may contain two spellings of a name.

    Args:
        folder: folder of the shards.
        keys: keys of the samples.
        person: name of a group.
        reason: text for the removal log.

    Raises:
        UserError: If the shards neither contain nor contained a key or the person (nothing is changed then), no sample
            would be left, another process is writing, or the disk fails.
    """
    read_manifest(folder)
    with lock_dir(folder):
        done = RemovalReport(resumed=recover(folder))
        manifest = read_manifest(folder)
        _refuse_links(folder, manifest)
        wanted = set(keys)
        found = _find(folder, manifest, wanted, person)
        # A person found only in rejects must match the group pattern, because a word may be part of any file name.
        rejected = _count_named(folder, rejects_naming(manifest, (), person, words=False))
        done.already = _check(folder, found, wanted, person, rejected)
        done.anonymized_rejects = _count_named(folder, rejects_naming(manifest, found.sources, person))
        done.samples, done.shards = found.samples, len(found.positions)
        if found.keys or done.anonymized_rejects:
            try:
                _stage(folder, manifest, found, person, reason)
            except (OSError, UserError) as error:
                shutil.rmtree(folder / STAGING, ignore_errors=True)
                raise UserError(
                    f"{getattr(error, 'strerror', None) or error}. Nothing was removed. Fix: resolve this and rerun."
                ) from None
            recover(folder)
    return done


def read_list(path: Path) -> list[str]:
    """Read keys from a file: one per line, or JSON lines with a `key` (as written by find_duplicates)."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        return [str(loads_object(line)["key"]) if line.startswith("{") else line for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--list={path}: {error!r}. Fix: write one key per line, or JSON lines with a key.") from None


def recover(folder: Path) -> str:
    """Finish a prepared removal or undo an unprepared one; return "finished", "undone" or "" if there was none."""
    staging = folder / STAGING
    if not staging.exists():
        return ""
    try:
        if not (staging / READY).exists():
            begun = any(staging.iterdir())  # the first and last step of a removal leave an empty folder
            shutil.rmtree(staging)
            fsync_dir(folder)
            return "undone" if begun else ""
        _move(folder, staging, _read_plan(staging / READY))
    except OSError as error:
        raise UserError(
            f"cannot finish the removal in {staging} ({error}). Fix: resolve this and rerun the command."
        ) from None
    return "finished"


def _read_plan(path: Path) -> dict[str, list[str]]:
    """Return the files to publish and the files to delete. Raises UserError for names outside the folder."""
    try:
        plan = loads_object(read_bytes(path))
        names = [plan["place"], plan["drop"]]
        if not all(isinstance(name, str) and is_plain(name) for each in names for name in each):
            raise ValueError("it names files in other folders")  # noqa: TRY301
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"shards: {path} is corrupt ({error}). "
            f"Fix: delete {path.parent} and run simfle shards verify {shlex.quote(str(path.parents[1]))}"
        ) from None
    return plan


def _move(folder: Path, staging: Path, plan: dict[str, list[str]]) -> None:
    """Publish the new shards and the manifest, then delete the old shards. This can be interrupted after any step."""
    for name in plan["place"]:
        if name == NAME:
            fsync_dir(folder)  # the shards' names are durable before the manifest that refers to them
        if (staging / name).exists():
            (staging / name).replace(folder / name)
    fsync_dir(folder)
    for name in plan["drop"]:
        (folder / name).unlink(missing_ok=True)
    (staging / READY).unlink()
    staging.rmdir()
    fsync_dir(folder)


def _find(folder: Path, manifest: Manifest, keys: set[str], person: str | None) -> _Found:
    found = _Found()
    for info in manifest.shards:
        positions = None if person is not None else _positions(folder, info, keys)
        if positions == []:
            continue
        samples = read_samples(folder, info, positions, only=("json",))
        for position, sample in zip(range(info.samples) if positions is None else positions, samples, strict=True):
            known = sample.metadata
            group = known.get("group")
            is_person = (
                person is not None and group is not None and normalize_unicode(str(group)) == normalize_unicode(person)
            )
            if sample.key in keys or is_person:
                found.positions.setdefault(info.file, []).append(position)
                found.keys.add(sample.key)
                found.sources.add(str(known.get("source", "")))
    return found


def _positions(folder: Path, info: ShardInfo, keys: set[str]) -> list[int]:
    return [position for position, key in enumerate(shard_index(folder, info).keys) if key in keys]


def _check(folder: Path, found: _Found, keys: set[str], person: str | None, rejected: int) -> int:
    """Return the number of requested items that were removed before. Raises UserError for items that never existed."""
    before: set[str] = set()
    for item in read_removal_log(folder):
        before |= {*map(str, item["keys"]), str(item.get("person", ""))}
    absent = sorted(key for key in keys - found.keys if _key_hash(key) not in before)
    if absent:
        named = ", ".join(map(repr, absent[:MAX_NAMED]))
        raise UserError(
            f"{folder} has no sample {named}{' ...' if len(absent) > MAX_NAMED else ''}. Nothing was removed. "
            "Fix: check the keys."
        )
    gone = len(keys - found.keys)
    if person is not None and not found.keys:
        if before.isdisjoint(_key_hashes(person)) and not rejected:
            raise UserError(
                f"{folder} has no sample of the person (group) {person!r}. Nothing was removed. Fix: check the name."
            )
        gone += not rejected
    return gone


def read_removal_log(folder: Path) -> list[dict[str, Any]]:
    """Read the removal log of these shards: date, samples, reason, hashes of keys."""
    return _read_lines(folder / REMOVAL_LOG, {"keys": list})


def read_rejects(folder: Path) -> list[dict[str, Any]]:
    """Read the rejects of the build: source, reason and detail of each."""
    return _read_lines(folder / REJECTED, {"reason": str})


def _read_lines(path: Path, needed: dict[str, type]) -> list[dict[str, Any]]:
    """Read JSON lines with the required fields; [] if the file is missing. Raises UserError if a field is missing."""
    try:
        found = [loads_object(line) for line in read_text(path).splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Fix: correct the file, or move it away.") from None
    for name, kind in needed.items():
        if not all(isinstance(item.get(name), kind) for item in found):
            raise UserError(f"{path} cannot be read (a line without {name}). Fix: correct the file, or move it away.")
    return found


def _key_hash(name: str) -> str:
    """Hash a key or name for the log: a known name can be looked up, but the log does not reveal names."""
    return keyed_hash(name, "removed").hex()


def _key_hashes(person: str) -> set[str]:
    """Return all hashes that a log may hold for a person: earlier versions hashed the name as typed."""
    return {_key_hash(name) for name in (person, normalize_unicode(person), unicodedata.normalize("NFD", person))}


def _stage(folder: Path, manifest: Manifest, found: _Found, person: str | None, reason: str) -> None:
    """Write all new files to the staging folder; READY, written last, marks it as complete."""
    staging = folder / STAGING
    staging.mkdir()
    shards: list[ShardInfo] = []
    place: list[str] = []
    drop: list[str] = []
    taken = {path.name for path in folder.iterdir()} | {info.file for info in manifest.shards}
    for info in manifest.shards:
        gone = set(found.positions.get(info.file, ()))
        if not gone:
            shards.append(info)
            continue
        drop += [info.file, index_name(info.file)]
        if len(gone) < info.samples:
            left = [position for position in range(info.samples) if position not in gone]
            path = staging / _next_name(info.file, taken)
            taken.add(path.name)
            shards.append(write_shard(path, info.split, read_samples(folder, info, left)))
            _as_private(folder / info.file, path, path.with_name(index_name(path.name)))
            place += [path.name, index_name(path.name)]
    if not shards:
        raise UserError(f"no sample of {folder} would be left. Fix: delete the folder instead.")
    _write_rejected(folder, staging, manifest, found, person)
    _append_removal_log(folder, staging, found, person, reason)
    _as_private(folder / REJECTED, staging / REJECTED)
    _as_private(folder / NAME, staging / REMOVAL_LOG)
    rejected = Counter(manifest.rejected) + Counter(removed=found.samples)
    build = manifest.build | {"removed": int(manifest.build.get("removed", 0)) + found.samples}
    new = replace(manifest, shards=tuple(shards), rejected=dict(sorted(rejected.items())), build=build)
    write_manifest(staging, new)
    _as_private(folder / NAME, staging / NAME)
    plan = {"place": [*place, REJECTED, REMOVAL_LOG, NAME], "drop": drop}
    write_atomic(staging / READY, json.dumps(plan).encode())
    fsync_dir(folder)


def _refuse_links(folder: Path, manifest: Manifest) -> None:
    """Raise UserError if a shard is a link: its target would keep the samples."""
    for info in manifest.shards:
        path = folder / info.file
        if path.is_symlink():
            raise UserError(
                f"{path}: is a link, and {path.resolve()} would keep the samples. Nothing was removed. "
                "Fix: remove them from the shards that the link leads to."
            )


def _as_private(before: Path, *paths: Path) -> None:
    """Restrict new files to the permissions of the old one."""
    with suppress(FileNotFoundError):
        mode = stat.S_IMODE(before.stat().st_mode)
        for path in paths:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & mode)


def _next_name(file: str, taken: set[str]) -> str:
    """Return the first name without a tar or an index: train-000003.tar -> train-000003-1.tar -> train-000003-2.tar."""
    match = re.fullmatch(r"(.*-\d{6})-(\d+)\.tar", file)
    stem, first = (match[1], int(match[2]) + 1) if match else (file.removesuffix(".tar"), 1)
    names = (f"{stem}-{number}.tar" for number in count(first))
    return next(name for name in names if taken.isdisjoint((name, index_name(name))))


def _write_rejected(folder: Path, staging: Path, manifest: Manifest, found: _Found, person: str | None) -> None:
    """Rewrite the rejects with one anonymous line per removed sample; blank rejects that name a removed sample."""
    rejects = read_rejects(folder)
    rejects += [{"reason": "removed"}] * found.samples
    names = rejects_naming(manifest, found.sources, person)
    told = "".join(json.dumps(item) + "\n" for item in _anonymous(rejects, names))
    write_atomic(staging / REJECTED, told.encode())


def _anonymous(rejects: Sequence[dict[str, Any]], names: Callable[[str, str], bool]) -> Iterator[dict[str, str]]:
    for item in rejects:
        source, detail = _from_json(item)
        if names(source, detail):
            source = detail = ""
        yield {"source": source, "reason": item["reason"], "detail": detail}


def _from_json(item: dict[str, Any]) -> tuple[str, str]:
    return str(item.get("source", "")), str(item.get("detail", ""))


def _count_named(folder: Path, names: Callable[[str, str], bool]) -> int:
    """Return the number of rejects that will be blanked."""
    return sum(names(*_from_json(item)) for item in read_rejects(folder))


def _append_removal_log(folder: Path, staging: Path, found: _Found, person: str | None, reason: str) -> None:
    item: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "samples": found.samples,
        "reason": reason,
        "keys": sorted(map(_key_hash, found.keys)),
    }
    if person is not None:
        item["person"] = _key_hash(normalize_unicode(person))
    told = "".join(json.dumps(line) + "\n" for line in [*read_removal_log(folder), item])
    write_atomic(staging / REMOVAL_LOG, told.encode())
