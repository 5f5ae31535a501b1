"""Plan of a build: shard and position of each entry, as a pure function of the entries and rules.

The plan is an SQLite file, so that sorting, finding duplicates and reading a worker's shard need the same memory for a
thousand and for a hundred million entries. Entries are ordered by a keyed hash of their key, which mixes classes and
people independently of the order of the file system or list.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.entry import Entry, LazyBytes, Rejected
from shards.errors import UserError
from shards.io.atomic import fsync_file
from shards.rules import EntryRules, archive_key, disambiguated_key, keyed_hash, label_order, resolve_entry

SCHEMA = """
CREATE TABLE found (  -- one row per entry to write
    ident BLOB NOT NULL,   -- Entry.key, to find duplicates
    place BLOB NOT NULL,   -- keyed hash of Entry.key: the order of the samples
    split TEXT NOT NULL, grp BLOB, label TEXT, key TEXT NOT NULL,
    meta TEXT NOT NULL, path TEXT, reason TEXT,
    data BLOB              -- last: SQLite reads later columns through a large value
);
CREATE TABLE refused (source TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE shard (split TEXT NOT NULL, number INTEGER NOT NULL, first BLOB NOT NULL, entries INTEGER NOT NULL);
"""
REPEATS = """
CREATE INDEX by_ident ON found (ident);
UPDATE found SET reason = 'conflicting_label' WHERE ident IN
    (SELECT ident FROM found GROUP BY ident HAVING count(DISTINCT coalesce(label, '')) > 1);
UPDATE found SET reason = 'repeated' WHERE reason IS NULL AND ident IN
    (SELECT ident FROM found WHERE reason IS NULL GROUP BY ident HAVING count(*) > 1)
    AND rowid NOT IN (SELECT min(rowid) FROM found WHERE reason IS NULL GROUP BY ident HAVING count(*) > 1);
CREATE INDEX by_place ON found (split, place) WHERE reason IS NULL;
CREATE INDEX by_key ON found (key) WHERE reason IS NULL;
"""
ALIKE = "SELECT key FROM found WHERE reason IS NULL GROUP BY key HAVING count(*) > 1"


@dataclass(frozen=True)
class ShardSpec:
    """Planned shard: `entries` entries of a split, starting at position `first`."""

    split: str
    number: int
    first: bytes
    entries: int

    @property
    def name(self) -> str:
        """File name without its extension."""
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True)
class PlannedEntry:
    """An entry and its key in the tar."""

    key: str
    entry: Entry


class Digest:
    """Digest of the entries in order and of the options: equal digests give equal shards."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._hash = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=16)

    def add(self, text: str, data: bytes | None = None) -> None:
        """Add one entry."""
        line = text.encode("utf-8", "surrogateescape")
        self._hash.update(b"%d %d " % (len(line), -1 if data is None else len(data)) + line + (data or b""))

    def value(self) -> str:
        """Return 32 hexadecimal digits."""
        return self._hash.hexdigest()


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """Return an entry's metadata as plain JSON, without the image and its path on this machine."""
    known = {name: getattr(entry, name) for name in ("source", "label", "group", "split", "box", "landmarks")}
    known["extras"] = entry.extras or None
    if isinstance(entry.read, LazyBytes):
        known["recipe"] = {"reader": entry.read.reader, "arguments": entry.read.arguments}
    return {name: value for name, value in known.items() if value is not None}


def apply_rules(
    entries: Iterable[Entry | Rejected], rules: EntryRules, digest: Digest
) -> Iterator[tuple[Entry | Rejected, str]]:
    """Yield each entry after the rules, with its JSON, and add both to the digest."""
    for found in entries:
        item = resolve_entry(found, rules) if isinstance(found, Entry) else found
        if isinstance(item, Rejected):
            text = json.dumps([item.source, item.reason, item.detail])
            digest.add(text)
        else:
            text = json.dumps(entry_to_json(item), default=float)
            digest.add(text + item.key, item.read if isinstance(item.read, bytes) else None)
        yield item, text


def digest_entries(entries: Iterable[Entry | Rejected], rules: EntryRules, options: dict[str, Any]) -> str:
    """Return the digest of a listing without making a plan; a restarted build compares this digest."""
    digest = Digest(options)
    for _ in apply_rules(entries, rules, digest):
        pass
    return digest.value()


def make_plan(
    path: Path, entries: Iterable[Entry | Rejected], rules: EntryRules, options: dict[str, Any], shard_samples: int
) -> str:
    """Write the plan of a build to `path` and return its digest.

    Args:
        path: SQLite file to write.
        entries: the listing.
        rules: rules that resolve labels, groups and splits.
        options: everything else that determines the bytes of the shards.
        shard_samples: maximum number of entries per shard.
    """
    path.unlink(missing_ok=True)
    digest = Digest(options)
    # Without SQLite's own locks, which some network file systems lack: the build holds the lock of its folder.
    address = f"{path.absolute().as_uri()}?vfs=unix-none"
    with closing(sqlite3.connect(address, isolation_level=None, uri=True)) as base:
        # The file need not survive a crash: the plan is valid only once its digest is written.
        base.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;" + SCHEMA)
        base.execute("BEGIN")
        rows = (_row(base, item, text) for item, text in apply_rules(entries, rules, digest))
        base.executemany(f"INSERT INTO found VALUES ({', '.join('?' * 8)}, NULL, ?)", filter(None, rows))
        base.execute("COMMIT")
        base.executescript(REPEATS)
        _disambiguate_keys(base)
        _assign_shards(base, shard_samples)
    fsync_file(path)
    return digest.value()


def _row(base: sqlite3.Connection, item: Entry | Rejected, text: str) -> tuple[Any, ...] | None:
    if isinstance(item, Rejected):
        detail = item.detail.encode("utf-8", "backslashreplace").decode()  # names in it may not be valid text
        base.execute("INSERT INTO refused VALUES (?, ?, ?)", (json.dumps(item.source), item.reason, detail))
        return None
    ident = item.key.encode("utf-8", "surrogateescape")
    group = None if item.group is None else item.group.encode("utf-8", "surrogateescape")
    file = item.read.file if isinstance(item.read, LazyBytes) else item.read
    # Absolute: a build may be resumed from another working folder.
    path = json.dumps(str(file.absolute())) if isinstance(file, Path) else None
    data = item.read if isinstance(item.read, bytes) else None
    place = keyed_hash(item.key, "order")
    return (ident, place, item.split, group, item.label, archive_key(item.key), text, path, data)


def _disambiguate_keys(base: sqlite3.Connection) -> None:
    """Disambiguate equal tar keys with a suffix that depends only on the entry's own key."""
    base.create_function(
        "marked",
        2,
        lambda key, ident: disambiguated_key(key, ident.decode("utf-8", "surrogateescape")),
        deterministic=True,
    )
    base.execute(f"UPDATE found SET key = marked(key, ident) WHERE reason IS NULL AND key IN ({ALIKE})")
    left = base.execute(ALIKE).fetchone()
    if left:
        raise UserError(f"two entries get the same key {left[0]!r}. Fix: rename one of the files.")


def _assign_shards(base: sqlite3.Connection, shard_samples: int) -> None:
    """Assign entries to shards of nearly equal size: a last shard of three samples would slow down an epoch."""
    counts = base.execute("SELECT split, count(*) FROM found WHERE reason IS NULL GROUP BY split").fetchall()
    for split, count in counts:
        shards = -(-count // shard_samples)
        starts = [number * count // shards for number in range(shards + 1)]
        wanted = {start: number for number, start in enumerate(starts[:-1])}
        places = base.execute("SELECT place FROM found WHERE split = ? AND reason IS NULL ORDER BY place", (split,))
        for rank, (place,) in enumerate(places):
            number = wanted.get(rank)
            if number is not None:
                size = starts[number + 1] - rank
                base.execute("INSERT INTO shard VALUES (?, ?, ?, ?)", (split, number, place, size))


class BuildPlan:
    """Complete plan, read-only; each process opens its own copy."""

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def shards(self) -> list[ShardSpec]:
        """Return all shards: train first, then the other splits by name."""
        rows = self._base.execute(
            "SELECT split, number, first, entries FROM shard ORDER BY split <> 'train', split, number"
        )
        return [ShardSpec(*row) for row in rows]

    def entries(self, shard: ShardSpec) -> Iterator[PlannedEntry]:
        """Yield the entries of one shard, in order."""
        rows = self._base.execute(
            "SELECT key, ident, meta, path, data FROM found WHERE split = ? AND reason IS NULL AND place >= ?"
            " ORDER BY place LIMIT ?",
            (shard.split, shard.first, shard.entries),
        )
        for key, ident, meta, path, data in rows:
            known = json.loads(meta)
            recipe = known.pop("recipe", None)
            read = _read(json.loads(path) if path else None, data, recipe)
            for name in ("box", "landmarks"):
                if name in known:
                    known[name] = _tuples(known[name])
            yield PlannedEntry(key, Entry(key=ident.decode("utf-8", "surrogateescape"), read=read, **known))

    def paths(self) -> Iterator[tuple[Path, str]]:
        """Return the files to read, each with the source of its entry."""
        rows = self._base.execute("SELECT path, meta FROM found WHERE reason IS NULL AND path IS NOT NULL")
        return ((Path(json.loads(path)), json.loads(meta)["source"]) for path, meta in rows)

    def rejected(self) -> Iterator[Rejected]:
        """Yield the entries that the listing alone rejects, in a fixed order."""
        rows = self._base.execute("SELECT source, reason, detail FROM refused ORDER BY source, reason, detail, rowid")
        for source, reason, detail in rows:
            yield Rejected(json.loads(source), reason, detail)
        rows = self._base.execute("SELECT meta, reason FROM found WHERE reason IS NOT NULL ORDER BY place, rowid")
        for meta, reason in rows:
            known = json.loads(meta)
            yield Rejected(known["source"], reason, known.get("label") or "")

    def count(self) -> int:
        """Return the number of entries that the source listed."""
        return self._number("SELECT (SELECT count(*) FROM found) + (SELECT count(*) FROM refused)")

    def planned(self) -> int:
        """Return the number of entries that workers will try to write."""
        return self._number("SELECT count(*) FROM found WHERE reason IS NULL")

    def reasons(self) -> dict[str, int]:
        """Return reason -> count of the entries that the listing alone rejects."""
        both = "SELECT reason FROM refused UNION ALL SELECT reason FROM found WHERE reason IS NOT NULL"
        return dict(self._base.execute(f"SELECT reason, count(*) FROM ({both}) GROUP BY reason ORDER BY reason"))

    def labels(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """Return the label names in the order of their `.cls` numbers."""
        rows = self._base.execute("SELECT DISTINCT label FROM found WHERE reason IS NULL AND label IS NOT NULL")
        return label_order([name for (name,) in rows], asked)

    def groups_across_splits(self) -> int:
        """Return the number of groups with entries in several splits (only with the source's own splits)."""
        return self._number(
            "SELECT count(*) FROM (SELECT grp FROM found WHERE reason IS NULL AND grp IS NOT NULL"
            " GROUP BY grp HAVING count(DISTINCT split) > 1)"
        )

    def similar_groups(self) -> tuple[int, list[str]]:
        """Return the number of names of groups that several groups share apart from their case, and one example."""
        same = (
            "SELECT min(grp), max(grp) FROM found WHERE reason IS NULL AND grp IS NOT NULL"
            " GROUP BY lower(CAST(grp AS TEXT)) HAVING count(DISTINCT grp) > 1"
        )
        example = self._base.execute(f"{same} ORDER BY 1 LIMIT 1").fetchone() or ()
        return self._number(f"SELECT count(*) FROM ({same})"), [name.decode("utf-8", "replace") for name in example]

    def ungrouped_count(self) -> int:
        """Return the number of planned entries without a group."""
        return self._number("SELECT count(*) FROM found WHERE reason IS NULL AND grp IS NULL")

    def _number(self, query: str) -> int:
        return int(self._base.execute(query).fetchone()[0])


def _read(path: str | None, data: bytes | None, recipe: dict[str, Any] | None) -> Path | bytes | LazyBytes:
    """Restore an entry's `read` field."""
    if recipe is not None:
        return LazyBytes(recipe["reader"], tuple(recipe["arguments"]), Path(path) if path else None)
    return Path(path) if path else data or b""


def _tuples(value: Any) -> Any:
    """Convert JSON lists back to tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
