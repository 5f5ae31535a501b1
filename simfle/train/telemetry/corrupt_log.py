"""Record corrupt samples of a run in RUN/corrupt_samples.jsonl, and stop the run if there are too many.

At each start the listed samples are tried again, because shards may have been restored. A sample that decodes again
stays listed, marked as restored, and is no longer counted.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shards.io.atomic import read_text, replace_text
from shards.io.jsonl import iter_valid_lines
from shards.redact import to_json
from simfle.data.corrupt_samples import Replacement
from simfle.runtime.collective import main_process_value
from simfle.runtime.distributed import World

FILE = "corrupt_samples.jsonl"
RESTORED = "restored"
FREE = 10  # number of corrupt samples that never stops a run, unless no corrupt sample is allowed
log = logging.getLogger(__name__)


class CorruptSampleLog:
    """Corrupt samples, known to all processes; the main process logs and writes.

    run: run folder; limit: `data.max_corrupt_fraction`; resumed_step: lines of later steps are dropped, because they
    will be written again; is_sound: whether a listed sample can be decoded now (None = samples cannot be tried again,
    as in a stream, and each start counts from 0).
    """

    def __init__(
        self, run: Path, limit: float, resumed_step: int, world: World, is_sound: Callable[[int], bool] | None
    ) -> None:
        self._file, self._limit, self._world = run / FILE, limit, world
        lines = main_process_value(read_lines(self._file, resumed_step) if world.is_main else [])
        self.ids = {line["id"] for line in lines if not line.get(RESTORED)} if is_sound else set()
        restored = self._decodable_again(is_sound) if is_sound else set()
        self.ids -= restored
        if world.is_main and self._file.exists():
            for line in lines:
                if line["id"] in restored:
                    line[RESTORED] = True
            text = "".join(to_json(line) + "\n" for line in lines)
            replace_text(self._file, text)
        if world.is_main and restored:
            log.info("%d corrupt samples can be decoded again; marked in %s", len(restored), self._file)

    def _decodable_again(self, is_sound: Callable[[int], bool]) -> set[int]:
        """Return the listed samples that can be decoded now. Each process tries a range of ids, because neighbors are
        in the same shard."""
        listed = sorted(self.ids)
        share = -(-len(listed) // self._world.world_size)
        mine = listed[self._world.rank * share : (self._world.rank + 1) * share]
        parts: list[Any] = [None] * self._world.world_size
        dist.all_gather_object(parts, [number for number in mine if is_sound(number)])
        return {number for part in parts for number in part}

    def add(self, found: list[Replacement]) -> None:
        """Record the samples that this process found corrupt in this step. Collective; call only in steps with corrupt
        samples."""
        parts: list[Any] = [None] * self._world.world_size
        dist.all_gather_object(parts, found)
        new = {each.id: each for part in parts for each in part if each.id not in self.ids}
        self.ids |= new.keys()
        if not self._world.is_main:
            return
        with self._file.open("a") as file:
            for each in new.values():
                file.write(to_json(asdict(each) | {"step": each.step + 1}) + "\n")
                log.warning("%s: %s cannot be decoded; replaced by sample %d", each.shard, each.key, each.replaced_by)

    def limit_exceeded(self, seen: int) -> str:
        """Return why the run must stop after `seen` samples, or "" if it may continue."""
        allowed = max(FREE, self._limit * seen) if self._limit else 0
        if len(self.ids) <= allowed:
            return ""
        return (
            f"{len(self.ids)} of {seen} samples are corrupt, data.max_corrupt_fraction={self._limit:g} allows "
            f"{int(allowed)}; "
            f"listed in {self._file}. Fix: restore the shards and rerun to try these samples again, or allow more"
        )


def read_lines(file: Path, last_step: int = 1 << 62) -> list[dict[str, Any]]:
    """Read the lines up to a step; skip truncated lines."""
    lines = []
    for line in iter_valid_lines(read_text(file, errors="replace") if file.exists() else ""):
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            if int(line["step"]) <= last_step and 0 <= int(line["id"]) < 1 << 63:
                lines.append(line | {"id": int(line["id"])})
    return lines
