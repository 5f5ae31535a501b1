"""Check that all processes of a run were started with the same program, configuration and data.

Each process computes its samples and random numbers independently. A process that was started with another seed or
from another checkout would silently continue to train, and the run would not be reproducible.
"""

import hashlib
import socket
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from shards.io.atomic import read_bytes
from simfle.config.parsing import flatten
from simfle.config.schema import PretrainConfig
from simfle.data.training_data import TrainingData
from simfle.errors import CollectiveError
from simfle.runtime.collective import main_process_value
from simfle.runtime.distributed import World
from simfle.runtime.provenance import versions

# Values that may differ between machines: paths and thread counts. Data is compared by its content.
MACHINE_SPECIFIC = (
    "train.run_dir",
    "data.shards",
    "data.cache_dir",
    "data.cache_gb",
    "data.decode_threads",
    "data.prefetch_batches",
)
INTERPRETER = ("python", "machine")  # may also differ: libraries compute the results, not the interpreter
MAX_NAMED = 8  # maximum number of reported differences


def check_ranks_match(config: PretrainConfig, data: TrainingData, world: World) -> None:
    """Compare the start of this process with that of the main process. Collective.

    Raises:
        CollectiveError: If the two differ. The message names the process and the values.
    """
    if world.world_size == 1:
        return
    mine = facts(config, data)
    theirs = main_process_value(mine)
    told: list[str] = [""] * world.world_size
    dist.all_gather_object(told, differences(theirs, mine))
    if other := [rank for rank, words in enumerate(told) if words]:
        more = f" (and {len(other) - 1} more processes)" if len(other) > 1 else ""
        raise CollectiveError(
            f"process {other[0]} {told[other[0]]}{more}. Fix: start all processes of a run with the same program, "
            "configuration and shards.",
            is_reporter=world.is_main,
        )


def facts(config: PretrainConfig, data: TrainingData) -> dict[str, str]:
    """Return text by name: the configuration values that all processes must share, data, program, libraries."""
    values = {key: str(value) for key, value in flatten(asdict(config)).items() if key not in MACHINE_SPECIFIC}
    libraries = {name: version for name, version in versions().items() if name not in INTERPRETER}
    return values | libraries | {"data": data.digest(), "program": source_digest()}


def differences(main: dict[str, str], mine: dict[str, str]) -> str:
    """Return `on HOST differs from the main process: NAME VALUE instead of VALUE; ...`, or "" if all are equal."""
    names = sorted(name for name in main.keys() | mine.keys() if main.get(name) != mine.get(name))
    if not names:
        return ""
    shown = [f"{name} {mine.get(name, 'missing')} instead of {main.get(name, 'missing')}" for name in names[:MAX_NAMED]]
    more = [f"and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    return f"on {socket.gethostname()} differs from the main process: {'; '.join([*shown, *more])}"


def source_digest() -> str:
    """Return 16 hexadecimal digits that identify the sources of this program, in any folder."""
    import shards
    import simfle

    digest = hashlib.blake2b(digest_size=8)
    for package in (simfle, shards):
        (folder,) = package.__path__
        for file in sorted(Path(folder).rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + b"\0" + read_bytes(file) + b"\0")
    return digest.hexdigest()
