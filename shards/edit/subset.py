"""Subsets of shards (1 %, 10 %) and new splits. Deterministic and nested; samples are copied unchanged.

Samples, or groups (people) that must stay together, are ordered by a keyed hash; a subset is a range of that order.
A smaller fraction is therefore always contained in a larger one, independent of the rest of the shards.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.format.manifest import FORMAT, REJECTED, Manifest, ShardInfo, read_manifest, write_manifest
from shards.format.samples import (
    StoredSample,
    provenance,
    read_samples,
    select_shards,
    staged_output_dir,
    write_split,
)
from shards.format.shard_reader import check_sizes
from shards.io.atomic import write_atomic
from shards.rules import VAL, keyed_hash, normalize_split

BY = ("label", "sample", "group")
ROUNDING = 9  # decimals kept of a number of samples: 0.1 * 30 is 3, not 3.0000000000000004

Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class Ranks:
    """Rank of each sample [n] in the order of its stratum, and the size of that stratum."""

    rank: Ints
    size: Ints


def rank_samples(
    folder: Path, shards: Sequence[ShardInfo], labels: Sequence[str], stratify_by: str, seed: int, progress: Progress
) -> Ranks:
    """Rank samples for subsets and splits.

    Args:
        folder: folder of the shards.
        shards: shards to rank.
        labels: label names of the manifest.
        stratify_by: "sample" ranks all samples of a split; "label" ranks the samples of each label of a split, so that
            every part keeps the label proportions; "group" ranks the groups of all splits together (a sample without
            group counts as its own group).
        seed: seed of the keyed hash.
        progress: called with stage, done, total.
    """
    if stratify_by not in BY:
        raise UserError(f"--stratify-by={stratify_by}: unknown. Fix: choose one of {', '.join(BY)}.")
    check_sizes(folder, shards)
    purpose = f"subset {seed}"
    total = sum(info.samples for info in shards)
    units = np.zeros(total, np.uint64)
    strata = np.zeros(total, np.int64)
    names: dict[tuple[str, str], int] = {}
    number = 0
    for info in shards:
        for sample in read_samples(folder, info, only=("cls", "json")):
            group = sample.metadata.get("group") if stratify_by == "group" else None
            # The prefixes distinguish keys from groups of the same name.
            unit = f"key {sample.key}" if group is None else f"group {group}"
            units[number] = int.from_bytes(keyed_hash(unit, purpose)[:8], "big")
            label = sample.label(labels) if stratify_by == "label" else ""
            stratum = ("", "") if stratify_by == "group" else (info.split, label)
            strata[number] = names.setdefault(stratum, len(names))
            number += 1
        progress("choosing", number, total)
    rank, size = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for place in range(len(names)):
        here = np.flatnonzero(strata == place)
        ordered, ranked = np.unique(units[here], return_inverse=True)
        rank[here], size[here] = ranked, len(ordered)
    return Ranks(rank, size)


def take_fraction(ranks: Ranks, fraction: float) -> NDArray[np.bool_]:
    """Return a mask [n] of the samples in a fraction: the first of each stratum, rounded up so that none is empty."""
    return np.asarray(ranks.rank < np.ceil(np.round(ranks.size * fraction, ROUNDING)))


def assign_ranges(ranks: Ranks, fractions: Sequence[float]) -> Ints:
    """Return the part [n] of each sample; fractions: size of each part, with sum 1."""
    part = np.zeros(len(ranks.rank), np.int64)
    for end in np.cumsum(fractions)[:-1]:
        part += ranks.rank >= np.round(np.round(ranks.size * end, ROUNDING))
    return part


def subset(
    folder: Path,
    out: Path,
    fraction: float,
    stratify_by: str,
    splits: Sequence[str],
    seed: int,
    shard_samples: int,
    progress: Progress,
) -> Manifest:
    """Write a fraction of the samples of `splits` (empty = all splits); copy the other splits completely.

    Raises:
        UserError: If `fraction` is not in (0, 1], a split is unknown, the output exists, or the disk fails.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction={fraction:g}: must be in (0, 1]. Fix: pass 0.01 for one percent.")
    manifest = read_manifest(folder)
    reduced = select_shards(manifest, splits, "--split")
    taken = take_fraction(rank_samples(folder, reduced, manifest.labels, stratify_by, seed, progress), fraction)
    chosen: dict[str, Sequence[int]] = {info.file: range(info.samples) for info in manifest.shards}
    first = 0
    for info in reduced:
        chosen[info.file] = np.flatnonzero(taken[first : first + info.samples]).tolist()
        first += info.samples
    places = [(info, chosen[info.file], info.split) for info in manifest.shards]
    how = {"subset": {"fraction": fraction, "by": stratify_by, "splits": list(splits), "seed": seed}}
    return _write(folder, out, manifest, places, how, shard_samples, progress)


def split(
    folder: Path,
    out: Path,
    shares: dict[str, float],
    stratify_by: str,
    splits: Sequence[str],
    seed: int,
    shard_samples: int,
    progress: Progress,
) -> Manifest:
    """Split the samples of `splits` (empty = all) into new splits, name -> share; keep the other splits.

    Raises:
        UserError: If the shares do not sum to 1, a name is that of another split, a part has no samples, the output
            exists, or the disk fails.
    """
    manifest = read_manifest(folder)
    divided = select_shards(manifest, splits, "--split")
    _check_shares(shares, manifest, {info.split for info in divided})
    part = assign_ranges(
        rank_samples(folder, divided, manifest.labels, stratify_by, seed, progress), list(shares.values())
    )
    empty = [name for number, name in enumerate(shares) if not (part == number).any()]
    if empty:
        raise UserError(
            f"--splits: split {', '.join(empty)} would be empty. Fix: increase its share, or use --stratify-by sample."
        )
    places: list[tuple[ShardInfo, Sequence[int], str]] = []
    first = 0
    for info in manifest.shards:
        if info not in divided:
            places.append((info, range(info.samples), info.split))
            continue
        here = part[first : first + info.samples]
        places += [(info, np.flatnonzero(here == number).tolist(), name) for number, name in enumerate(shares)]
        first += info.samples
    how = {"split": {"into": shares, "by": stratify_by, "splits": list(splits), "seed": seed}}
    return _write(folder, out, manifest, places, how, shard_samples, progress)


def _check_shares(shares: dict[str, float], manifest: Manifest, divided: set[str]) -> None:
    if not shares or any(not 0 < share < 1 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        told = ",".join(f"{name}={share:g}" for name, share in shares.items())
        raise UserError(
            f"--splits={told!r}: not at least two shares above 0 that sum to 1. Fix: write them like train=0.8,val=0.2."
        )
    for name in shares:
        if name != normalize_split(name):
            raise UserError(
                f"--splits: {name!r} is not a split name. Fix: write {normalize_split(name) or VAL!r} instead."
            )
        if name in manifest.splits and name not in divided:
            raise UserError(f"--splits: split {name!r} exists and is not being split. Fix: choose another name.")


def _write(
    folder: Path,
    out: Path,
    manifest: Manifest,
    places: Sequence[tuple[ShardInfo, Sequence[int], str]],
    how: dict[str, Any],
    shard_samples: int,
    progress: Progress,
) -> Manifest:
    """Copy samples given as (shard, positions in it, target split); splits keep the order of their appearance."""
    if shard_samples < 1:
        raise UserError(f"--shard-samples={shard_samples}: too small. Fix: pass at least 1.")
    counts: Counter[str] = Counter()
    for _, positions, name in places:
        counts[name] += len(positions)
    done = 0

    def copied(name: str) -> Iterator[StoredSample]:
        nonlocal done
        for info, positions, goal in places:
            if goal == name and len(positions):
                for sample in read_samples(folder, info, positions):
                    yield sample if goal == info.split else renamed_split(sample, goal)
                done += len(positions)
                progress("copying", done, sum(counts.values()))

    with staged_output_dir(out) as partial:
        shards = [
            info
            for name, count in counts.items()
            for info in write_split(partial, name, count, copied(name), shard_samples)
        ]
        write_atomic(partial / REJECTED, b"")
        made = dataclasses.replace(
            manifest,
            format=FORMAT,
            entries=sum(counts.values()),
            extra_samples=0,
            rejected={},
            shards=tuple(shards),
            build=how | provenance(manifest),
        )
        write_manifest(partial, made)
    return made


def renamed_split(sample: StoredSample, name: str) -> StoredSample:
    """Return the sample with another split in its json; the other members are unchanged."""
    known = json.dumps(sample.metadata | {"split": name}).encode()
    return StoredSample(sample.key, sample.members | {"json": known} if "json" in sample.members else sample.members)
