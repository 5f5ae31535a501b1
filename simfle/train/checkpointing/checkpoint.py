"""Checkpoints: full tensors by name in safetensors, written atomically by a background thread.

RUN/checkpoints/step-00000500/
    model.safetensors   parameters and buffers
    optim.safetensors   optimizer tensors
    state.json          step, samples consumed, identity of the configuration, digests of configuration and data
    COMPLETE            size and SHA-256 of these files, written last
"""

import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from shards.io.atomic import fsync_file, publish_dir, read_bytes, read_text, write_synced
from shards.io.hashing import hash_file
from shards.io.jsonl import loads, loads_object
from simfle.errors import UserError
from simfle.runtime import run_files
from simfle.train.checkpointing.safetensors_writer import RateLimiter, read_tensors, write_tensors
from simfle.train.checkpointing.state_dict import State

FORMAT = 2
MARKER, STATE = run_files.MARKER, run_files.STATE
FILES = ("model.safetensors", "optim.safetensors", STATE)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainState:
    """Progress of a run: optimizer steps done and samples consumed, which is the complete state of the data.

    config, corpus: digests of the configuration and of the data, which give the number of samples its meaning.
    identity: the values behind `config`, by key, to report differences; empty in older checkpoints.
    init: SHA-256 of the weights of model.init, or "" without model.init.
    """

    step: int
    samples: int
    config: str
    corpus: str
    optimizer: str
    format: int = FORMAT
    identity: dict[str, Any] = field(default_factory=dict)
    init: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Complete checkpoint as read from disk."""

    folder: Path
    progress: TrainState
    model: State
    optim: State


def checkpoint_dir(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step:08d}"


def complete_checkpoints(run: Path) -> list[Path]:
    """Return folders of complete checkpoints, newest first. A folder without its marker is not complete."""
    return run_files.complete_checkpoint_dirs(run)


def state_of(folder: Path) -> TrainState | None:
    """Return the state of a complete checkpoint, without its tensors, or None if it is corrupt or of another format."""
    found = run_files.read_state(folder)
    try:
        return _train_state(found) if found.get("format") == FORMAT else None
    except TypeError:
        return None


def _step(folder: Path) -> int:
    return run_files.step_from_name(folder) or 0


def _train_state(found: dict[str, Any]) -> TrainState:
    """Build TrainState from JSON. Raises TypeError for unknown fields, or values of the wrong type."""
    made = TrainState(**found)
    if type(made.step) is not int or not isinstance(made.identity, dict) or not isinstance(made.init, str):
        raise TypeError("step, identity or init has the wrong type")
    return made


def write(
    run: Path,
    progress: TrainState,
    model: State,
    optim: State,
    pace: RateLimiter | None = None,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write to a temporary folder, fsync, mark, rename, fsync. Older checkpoints survive an interruption at any point.

    Args:
        run: run folder.
        progress: state for state.json.
        model: parameters and buffers.
        optim: optimizer tensors.
        pace: rate limit (None = no limit).
        check: raises a UserError if this run no longer owns the folder; called before any write or rename.

    Returns:
        The folder of the checkpoint.

    Raises:
        FileExistsError: If the folder holds the state of another step.
        OSError: If the disk is full or fails.
    """
    check()
    final = checkpoint_dir(run, progress.step)
    if final in run_files.copied_checkpoints(run):
        raise FileExistsError(f"{final} has the state of another step. Fix: move this copy out of checkpoints/")
    if (final / MARKER).exists():
        return final
    parts = final.with_name(f".{final.name}.partial")
    marker = write_files(parts, model, optim, pace)
    text = json.dumps(asdict(progress), indent=2).encode()
    write_synced(parts / FILES[2], text)
    marker[FILES[2]] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    write_synced(parts / MARKER, json.dumps(marker, indent=2).encode())

    def make_room() -> None:
        check()
        shutil.rmtree(final, ignore_errors=True)  # a partly deleted checkpoint without a marker

    publish_dir(parts, final, make_room)
    return final


def write_files(parts: Path, model: State, optim: State, pace: RateLimiter | None = None) -> dict[str, dict[str, Any]]:
    """Write the tensors to a new folder and fsync them; return bytes and SHA-256 by file."""
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    written = {}
    for name, tensors in zip(FILES, (model, optim), strict=False):
        written[name] = write_tensors(parts / name, tensors, pace)
        fsync_file(parts / name)
    return written


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and the remains of interrupted writes. Keep symlinks."""
    for old in complete_checkpoints(run)[max(1, keep) :]:
        if not old.is_symlink():
            (old / MARKER).unlink()  # the folder is no longer a checkpoint, even if a crash leaves the rest
            shutil.rmtree(old)
    for left in [*run.glob("checkpoints/.step-*.partial"), *run.glob("checkpoints/.step-*.corrupt")]:
        if run_files.step_from_name(Path(left.stem[1:])) is not None:
            shutil.rmtree(left)
    for left in run_files.checkpoint_dirs(run):
        if not (left / MARKER).exists() and not left.is_symlink():
            shutil.rmtree(left)


def read_newest(run: Path) -> Checkpoint | None:
    """Read the newest valid checkpoint; return None if a run has none yet.

    A corrupt checkpoint is reported and skipped, and the previous one is read.

    Raises:
        UserError: If there are checkpoints but none is valid, because the run must not silently start from step 0.
    """
    reasons = []
    for folder in complete_checkpoints(run):
        try:
            return read(folder)
        except UserError as error:
            log.warning("%s; trying the previous checkpoint", error)
            reasons.append(str(error))
    # Old checkpoints lose their marker only after a newer one is complete: a single folder without marker is corrupt.
    reasons += [f"{folder.name} lacks {MARKER}" for folder in run_files.checkpoint_dirs(run) if not reasons]
    if reasons:
        raise UserError(
            f"train.run_dir={run}: no valid checkpoint ({'; '.join(reasons)}). Fix: restore one, or use another "
            "train.run_dir."
        )
    return None


def quarantine_after(run: Path, step: int) -> None:
    """Rename checkpoints of later steps than the resumed step: they are corrupt.

    The run will write checkpoints of those steps again, and must not count the corrupt ones among the kept checkpoints.
    """
    for folder in run_files.checkpoint_dirs(run):
        if _step(folder) > step:
            aside = folder.with_name(f".{folder.name}.corrupt")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def read(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        UserError: If a file is missing, or has another size, hash or format version.
    """
    try:
        marker = loads(read_text(folder / MARKER))
        for name in FILES:
            size, sha256 = marker[name]["bytes"], marker[name]["sha256"]
            if (folder / name).stat().st_size != size or hash_file(folder / name) != sha256:
                raise UserError(f"checkpoint {folder.name}: {name} is corrupt (its hash differs from the recorded one)")
        progress = loads_object(read_bytes(folder / FILES[2]))
        if progress.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {folder.name} has format {progress.get('format')}; this version reads {FORMAT}"
            )
        state = _train_state(progress)
        if run_files.step_from_name(folder) not in (None, state.step):
            raise UserError(f"checkpoint {folder.name} has the state after step {state.step}")
        return Checkpoint(folder, state, *(read_tensors(folder / name) for name in FILES[:2]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder.name} cannot be read: {error}") from None


class AsyncCheckpointWriter:
    """Write checkpoints in a background thread, one at a time; an error is raised by the next call.

    write_mbps: maximum MB/s (0 = no limit); the limit is lifted while a thread waits for the write.
    seconds, cpu, bytes: measures of the last write. check: see `write`.
    """

    def __init__(self, run: Path, keep: int, write_mbps: float = 0.0, check: Callable[[], None] = lambda: None) -> None:
        self.run, self.keep, self.write_mbps, self._check = run, keep, write_mbps, check
        self.seconds = self.cpu = 0.0
        self.bytes = 0
        self._drop_rate_limit = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, progress: TrainState, model: State, optim: State) -> None:
        """Wait for the previous write, then write this checkpoint in a thread."""
        self.wait()
        self._drop_rate_limit.clear()
        self._thread = threading.Thread(target=self._work, args=(progress, model, optim), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last submitted checkpoint is complete.

        Raises:
            UserError: If the checkpoint could not be written (for example because the disk is full), or this run no
                longer owns the folder.
        """
        if self._thread is not None:
            self._drop_rate_limit.set()
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, UserError):
                raise error
            raise UserError(
                f"checkpoint could not be written to {self.run}: {error}; older checkpoints are complete. "
                "Fix: resolve this and rerun."
            ) from error

    def _work(self, progress: TrainState, model: State, optim: State) -> None:
        began, used = time.perf_counter(), time.thread_time()
        try:
            folder = write(
                self.run, progress, model, optim, RateLimiter(self.write_mbps, self._drop_rate_limit), self._check
            )
            self.bytes = sum((folder / name).stat().st_size for name in FILES)
            prune(self.run, self.keep)
            self.seconds, self.cpu = time.perf_counter() - began, time.thread_time() - used
        except (OSError, SafetensorError, UserError) as error:
            self._error = error
