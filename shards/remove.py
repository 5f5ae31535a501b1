"""Take samples out of finished shards: because a person asks for it, or because they are duplicates or wrong.

The shards that held them are written anew under new names, without them; the manifest is the moment at which the new
ones count; then the old ones are deleted. Everything is made ready in SHARDS/.removal first. So a process that is
killed anywhere leaves either the old or the new samples readable, and the next start goes back or finishes.

Positions shift: global sample ids mean other images than before. A run knows its data by the hashes of the shards and
refuses to go on with them: what it had seen of them could not be told any more. Export its backbone, or start anew.
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

from shards.errors import UserError
from shards.files import read_bytes, read_text, sync_folder, write_atomic
from shards.manifest import NAME, REJECTED, Manifest, ShardInfo, index_name, read_manifest, write_manifest
from shards.names import is_plain
from shards.naming import naming
from shards.plain import parse_object
from shards.rules import composed, keyed_hash
from shards.samples import locked, read_samples, shard_index, write_shard

STAGING = ".removal"
READY = "ready.json"
RECORD = "removed.jsonl"
MOST_NAMED = 5


@dataclass
class Removal:
    """What a removal did. samples: taken out; shards: written anew or dropped; blanked: rejects that named them.

    already: how many of the wanted keys, or whether the person, had been taken out before; resumed: "finished" or
    "undone" is what happened to an interrupted removal.
    """

    samples: int = 0
    shards: int = 0
    blanked: int = 0
    already: int = 0
    resumed: str = ""


@dataclass
class _Found:
    """Where the samples are. positions: file -> positions in that shard."""

    positions: dict[str, list[int]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)

    @property
    def samples(self) -> int:
        """How many: foreign shards may give a key to several."""
        return sum(map(len, self.positions.values()))


def remove_samples(folder: Path, keys: Iterable[str] = (), person: str | None = None, reason: str = "") -> Removal:
    """Take out the samples with these keys, or all of a person (the group of that very name).

    Names are compared in one spelling of their accents: shards of earlier versions may hold two of one name.

    Raises:
        UserError: keys or a person that are not there and have not been taken out before (nothing is changed then),
        nothing would be left, another process at work, the disk fails.
    """
    read_manifest(folder)
    with locked(folder):
        done = Removal(resumed=recover(folder))
        manifest = read_manifest(folder)
        _refuse_links(folder, manifest)
        wanted = set(keys)
        found = _find(folder, manifest, wanted, person)
        # Who is among the rejects alone is known by the pattern: a word of a file's name may be of anybody.
        rejected = _count_named(folder, naming(manifest, (), person, words=False))
        done.already = _check(folder, found, wanted, person, rejected)
        done.blanked = _count_named(folder, naming(manifest, found.sources, person))
        done.samples, done.shards = found.samples, len(found.positions)
        if found.keys or done.blanked:
            try:
                _stage(folder, manifest, found, person, reason)
            except (OSError, UserError) as error:
                shutil.rmtree(folder / STAGING, ignore_errors=True)
                raise UserError(f"{getattr(error, 'strerror', None) or error}; nothing was removed") from None
            recover(folder)
    return done


def read_list(path: Path) -> list[str]:
    """Keys from a file: one a line, or JSON lines with a `key` (as find_duplicates writes them)."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        return [str(parse_object(line)["key"]) if line.startswith("{") else line for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--list {path}: {error!r}; give one key a line, or JSON lines with a key") from None


def recover(folder: Path) -> str:
    """Finish a removal that was made ready, undo one that was not; "finished", "undone" or "" if there was none."""
    staging = folder / STAGING
    if not staging.exists():
        return ""
    try:
        if not (staging / READY).exists():
            begun = any(staging.iterdir())  # an empty one is what the last step of a removal leaves, or the first
            shutil.rmtree(staging)
            sync_folder(folder)
            return "undone" if begun else ""
        _move(folder, staging, _read_plan(staging / READY))
    except OSError as error:
        raise UserError(f"cannot finish the removal in {staging}: {error}; mend it and run the same again") from None
    return "finished"


def _read_plan(path: Path) -> dict[str, list[str]]:
    """Read which files come and which go. Raises UserError where it names any that are not in the folder."""
    try:
        plan = parse_object(read_bytes(path))
        names = [plan["place"], plan["drop"]]
        if not all(isinstance(name, str) and is_plain(name) for each in names for name in each):
            raise ValueError("it names files of other folders")  # noqa: TRY301
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"shards: {path} is damaged ({error}). "
            f"Fix: delete {path.parent}, run simfle shards verify {shlex.quote(str(path.parents[1]))}"
        ) from None
    return plan


def _move(folder: Path, staging: Path, plan: dict[str, list[str]]) -> None:
    """New shards beside the old ones, then the manifest, then the old ones go. Any step may be the last."""
    for name in plan["place"]:
        if name == NAME:
            sync_folder(folder)  # the shards' names are on the disk before the manifest that counts on them
        if (staging / name).exists():
            (staging / name).replace(folder / name)
    sync_folder(folder)
    for name in plan["drop"]:
        (folder / name).unlink(missing_ok=True)
    (staging / READY).unlink()
    staging.rmdir()
    sync_folder(folder)


def _find(folder: Path, manifest: Manifest, keys: set[str], person: str | None) -> _Found:
    found = _Found()
    for info in manifest.shards:
        positions = None if person is not None else _positions(folder, info, keys)
        if positions == []:
            continue
        samples = read_samples(folder, info, positions, only=("json",))
        for position, sample in zip(range(info.samples) if positions is None else positions, samples, strict=True):
            known = sample.known
            group = known.get("group")
            is_person = person is not None and group is not None and composed(str(group)) == composed(person)
            if sample.key in keys or is_person:
                found.positions.setdefault(info.file, []).append(position)
                found.keys.add(sample.key)
                found.sources.add(str(known.get("source", "")))
    return found


def _positions(folder: Path, info: ShardInfo, keys: set[str]) -> list[int]:
    return [position for position, key in enumerate(shard_index(folder, info).keys) if key in keys]


def _check(folder: Path, found: _Found, keys: set[str], person: str | None, rejected: int) -> int:
    """How much of what is wanted has been taken out before. Raises UserError for what has never been there."""
    before: set[str] = set()
    for item in read_record(folder):
        before |= {*map(str, item["keys"]), str(item.get("person", ""))}
    absent = sorted(key for key in keys - found.keys if _mark(key) not in before)
    if absent:
        named = ", ".join(map(repr, absent[:MOST_NAMED]))
        raise UserError(f"{folder} has no sample {named}{' ...' if len(absent) > MOST_NAMED else ''}; nothing removed")
    gone = len(keys - found.keys)
    if person is not None and not found.keys:
        if before.isdisjoint(_marks(person)) and not rejected:
            raise UserError(f"{folder} has no sample of a person (group) {person!r}; nothing removed")
        gone += not rejected
    return gone


def read_record(folder: Path) -> list[dict[str, Any]]:
    """What has been taken out of these shards: date, samples, reason, hashes of keys."""
    return _read_lines(folder / RECORD, {"keys": list})


def read_rejects(folder: Path) -> list[dict[str, Any]]:
    """What the build of these shards rejected: source, reason and detail of each."""
    return _read_lines(folder / REJECTED, {"reason": str})


def _read_lines(path: Path, needed: dict[str, type]) -> list[dict[str, Any]]:
    """JSON lines that hold what is needed; [] if there is no such file. Raises UserError if one does not."""
    try:
        found = [parse_object(line) for line in read_text(path).splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); mend it or move it away") from None
    for name, kind in needed.items():
        if not all(isinstance(item.get(name), kind) for item in found):
            raise UserError(f"{path} cannot be read (a line without {name}); mend it or move it away")
    return found


def _mark(name: str) -> str:
    """A key or name as the record keeps it: whoever knows it can look it up, nobody can read it out."""
    return keyed_hash(name, "removed").hex()


def _marks(person: str) -> set[str]:
    """What a record of any version may hold of a person: earlier ones kept the name as it was typed."""
    return {_mark(name) for name in (person, composed(person), unicodedata.normalize("NFD", person))}


def _stage(folder: Path, manifest: Manifest, found: _Found, person: str | None, reason: str) -> None:
    """Write all that will change to the staging folder; READY, written last, says that it is complete."""
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
        raise UserError(f"no sample of {folder} would be left; delete the folder instead")
    _write_rejected(folder, staging, manifest, found, person)
    _write_record(folder, staging, found, person, reason)
    _as_private(folder / REJECTED, staging / REJECTED)
    _as_private(folder / NAME, staging / RECORD)
    rejected = Counter(manifest.rejected) + Counter(removed=found.samples)
    build = manifest.build | {"removed": int(manifest.build.get("removed", 0)) + found.samples}
    new = replace(manifest, shards=tuple(shards), rejected=dict(sorted(rejected.items())), build=build)
    write_manifest(staging, new)
    _as_private(folder / NAME, staging / NAME)
    plan = {"place": [*place, REJECTED, RECORD, NAME], "drop": drop}
    write_atomic(staging / READY, json.dumps(plan).encode())
    sync_folder(folder)


def _refuse_links(folder: Path, manifest: Manifest) -> None:
    """Raise UserError where a shard is a link: what it leads to would keep the samples."""
    for info in manifest.shards:
        path = folder / info.file
        if path.is_symlink():
            raise UserError(
                f"{path}: it is a link, and {path.resolve()} would keep the samples; nothing removed. "
                "Fix: remove them from the shards that it leads to"
            )


def _as_private(before: Path, *paths: Path) -> None:
    """Let nobody read what is written anew who could not read what was there."""
    with suppress(FileNotFoundError):
        mode = stat.S_IMODE(before.stat().st_mode)
        for path in paths:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & mode)


def _next_name(file: str, taken: set[str]) -> str:
    """train-000003.tar -> train-000003-1.tar -> train-000003-2.tar; on and on while a tar or an index has the name."""
    match = re.fullmatch(r"(.*-\d{6})-(\d+)\.tar", file)
    stem, first = (match[1], int(match[2]) + 1) if match else (file.removesuffix(".tar"), 1)
    names = (f"{stem}-{number}.tar" for number in count(first))
    return next(name for name in names if taken.isdisjoint((name, index_name(name))))


def _write_rejected(folder: Path, staging: Path, manifest: Manifest, found: _Found, person: str | None) -> None:
    """The rejects again, one anonymous line more for each sample; what names the removed ones is blanked."""
    rejects = read_rejects(folder)
    rejects += [{"reason": "removed"}] * found.samples
    names = naming(manifest, found.sources, person)
    told = "".join(json.dumps(item) + "\n" for item in _anonymous(rejects, names))
    write_atomic(staging / REJECTED, told.encode())


def _anonymous(rejects: Sequence[dict[str, Any]], names: Callable[[str, str], bool]) -> Iterator[dict[str, str]]:
    for item in rejects:
        source, detail = _told(item)
        if names(source, detail):
            source = detail = ""
        yield {"source": source, "reason": item["reason"], "detail": detail}


def _told(item: dict[str, Any]) -> tuple[str, str]:
    return str(item.get("source", "")), str(item.get("detail", ""))


def _count_named(folder: Path, names: Callable[[str, str], bool]) -> int:
    """How many rejects will be blanked."""
    return sum(names(*_told(item)) for item in read_rejects(folder))


def _write_record(folder: Path, staging: Path, found: _Found, person: str | None, reason: str) -> None:
    item: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "samples": found.samples,
        "reason": reason,
        "keys": sorted(map(_mark, found.keys)),
    }
    if person is not None:
        item["person"] = _mark(composed(person))
    told = "".join(json.dumps(line) + "\n" for line in [*read_record(folder), item])
    write_atomic(staging / RECORD, told.encode())
