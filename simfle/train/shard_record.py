"""Check that the shard files of a run have not changed although their manifest is the same.

The hashes in the manifests identify a run's data. Only `simfle shards verify`, which reads every byte, can check files
against them. A run therefore records spot checks of its files in RUN/shards.json when it starts, and compares them on
each resume. The processes of a machine share the work, and machines are compared as well. A tar in which the run found
corrupt samples may change, because the samples have to be restored.
"""

# S shards
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from shards.io.atomic import read_bytes, write_atomic
from shards.io.jsonl import dataclass_from_json
from shards.redact import to_json
from simfle.data.dataset import ShardCorpus
from simfle.errors import CollectiveError, UserError
from simfle.runtime.collective import main_process_tries
from simfle.runtime.distributed import World
from simfle.train.telemetry import corrupt_log

NAME = "shards.json"
THREADS = 16  # network file systems serve many requests in parallel
UNKNOWN = torch.iinfo(torch.int64).min  # there is no file on this machine, or another process checks it


@dataclass(frozen=True)
class ShardRecord:
    """Content of RUN/shards.json: spot checks of all tars and indexes in order, "" if there is no local file."""

    corpus: str
    tars: list[str]
    indexes: list[str]


def check_shards_unchanged(run: Path, corpus: ShardCorpus, world: World, *, resumed: bool) -> None:
    """Compare the files of `corpus` with those at the start of the run; record them at the start. Collective.

    Args:
        run: run folder.
        corpus: shards of the run.
        world: this process.
        resumed: whether the run resumes from a checkpoint.

    Raises:
        UserError: If files have changed, differ between machines or cannot be read, or the record is corrupt.
    """
    table = _agreed(corpus, world)
    main_process_tries(world, lambda: _compare(run, corpus, table, resumed))


def _agreed(corpus: ShardCorpus, world: World) -> Tensor:
    """Return spot checks [S, 2] int64 of tars and indexes, each checked once per machine. Raises UserError."""
    shards = len(corpus.shards)
    highest = torch.full((shards + 1, 2), UNKNOWN)
    failed: UserError | None = None
    try:
        mine = range(world.local_rank, shards, world.local_world_size)
        with ThreadPoolExecutor(THREADS) as pool:
            for shard, numbers in zip(mine, pool.map(lambda each: _numbers(corpus, each), mine), strict=True):
                highest[shard] = torch.tensor(numbers)
    except UserError as error:
        failed = error
        highest[shards] = 1
    # UNKNOWN is the smallest number, and inverting the bits of a number reverses the order.
    lowest = torch.where(highest == UNKNOWN, UNKNOWN, ~highest)
    both = torch.stack([highest, lowest]).to(world.device)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    highest, lowest = both.cpu()
    if failed is not None:
        raise failed
    if highest[shards, 0] != UNKNOWN:
        raise CollectiveError("another process cannot read the shards", is_reporter=False)
    other = ((highest != UNKNOWN) & (highest != ~lowest)).any(dim=1).nonzero().flatten().tolist()
    if other:
        raise CollectiveError(
            f"data.shards: {_named(corpus, other)} not the same on all machines. Fix: copy the shards to each "
            "machine again, and run simfle shards verify on each.",
            is_reporter=world.is_main,
        )
    return highest[:shards]


def _numbers(corpus: ShardCorpus, shard: int) -> tuple[int, int]:
    place, info = corpus.shards[shard]
    tar, index = place.spot_check(info) or ("", "")
    return _number(tar), _number(index)


def _number(digits: str) -> int:
    """Convert 16 hexadecimal digits to 63 bits."""
    return int(digits, 16) >> 1 if digits else UNKNOWN


def _digits(numbers: Tensor) -> list[str]:
    return ["" if number == UNKNOWN else f"{number:016x}" for number in numbers.tolist()]


def _compare(run: Path, corpus: ShardCorpus, table: Tensor, resumed: bool) -> None:
    """Raise a UserError if files have changed; otherwise write the record if it has gained information."""
    now = ShardRecord(corpus.digest(), *map(_digits, table.T))
    file = run / NAME
    # A run without a checkpoint starts from step 0 and records again, as does a run of an earlier version.
    before = _read(file, len(table)) if resumed and file.exists() else None
    if before is not None and before.corpus == now.corpus:
        pairs = (zip(before.tars, now.tars, strict=True), zip(before.indexes, now.indexes, strict=True))
        tars, indexes = (
            {shard for shard, (old, new) in enumerate(kind) if old and new and old != new} for kind in pairs
        )
        restored = tars & _corrupt_shards(run, corpus) if tars else set()
        if changed := tars - restored | indexes:
            raise UserError(
                f"data.shards: {_named(corpus, sorted(changed))} not the files that {run} was trained on, although "
                "the manifest is the same. Fix: restore these files, or build the shards again and use another "
                "train.run_dir; simfle shards verify FOLDER checks every byte."
            )
        known = ShardRecord(
            now.corpus,
            [
                new if shard in restored else old or new
                for shard, (old, new) in enumerate(zip(before.tars, now.tars, strict=True))
            ],
            [old or new for old, new in zip(before.indexes, now.indexes, strict=True)],
        )
    else:
        known = now
    if known != before:
        write_atomic(file, (to_json(vars(known), separators=(",", ":")) + "\n").encode())


def _corrupt_shards(run: Path, corpus: ShardCorpus) -> set[int]:
    """Return the shards with a sample that the run has listed as corrupt."""
    ids = np.array([line["id"] for line in corrupt_log.read_lines(run / corrupt_log.FILE)], dtype=np.int64)
    shards = np.maximum(np.searchsorted(corpus.first_ids, ids, side="right") - 1, 0)
    known = (ids >= corpus.first_ids[shards]) & (ids - corpus.first_ids[shards] < corpus.counts[shards])
    return set(shards[known].tolist())


def _read(file: Path, shards: int) -> ShardRecord:
    try:
        found = dataclass_from_json(ShardRecord, read_bytes(file))
    except ValueError as error:
        raise _corrupt_error(file, str(error)) from None
    if not len(found.tars) == len(found.indexes) == shards:
        raise _corrupt_error(file, f"not {shards} shards")
    return found


def _corrupt_error(file: Path, why: str) -> UserError:
    return UserError(
        f"train.run_dir: {file} is corrupt ({why}). Fix: restore it, or run simfle shards verify on the shards and "
        "delete it: the files are then recorded in their current state."
    )


def _named(corpus: ShardCorpus, shards: list[int]) -> str:
    """Return the first of some shards and the number of the others, as the subject of a sentence."""
    more = f" and {len(shards) - 1} more" if len(shards) > 1 else " or its index"
    return f"{corpus.shard_location(shards[0])}{more} {'are' if len(shards) > 1 else 'is'}"
