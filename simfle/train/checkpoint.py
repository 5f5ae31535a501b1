"""Checkpoints: full tensors by name in safetensors, written aside by a thread, complete or not there at all.

RUN/checkpoints/step-00000500/
    model.safetensors   parameters and buffers
    optim.safetensors   optimizer tensors
    state.json          step, samples consumed, identity of the configuration, digests of configuration and data
    COMPLETE            size and SHA-256 of the three, written last
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from shards.files import open_regular, read_bytes, read_text
from shards.plain import parse_json, parse_object
from simfle import told
from simfle.errors import UserError
from simfle.train.state import State
from simfle.train.tensors import Pace, read_tensors, write_tensors

FORMAT = 1
MARKER, STATE = told.MARKER, told.STATE
FILES = ("model.safetensors", "optim.safetensors", STATE)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps done and samples consumed. This one number is the data side's whole state.

    config, corpus: digests of the configuration and of the data, without which the number would mean other samples.
    identity: the values behind `config`, by key, so that what differs can be named; empty in older checkpoints.
    """

    step: int
    samples: int
    config: str
    corpus: str
    optimizer: str
    format: int = FORMAT
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint as read back."""

    folder: Path
    progress: Progress
    model: State
    optim: State


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def complete(run: Path) -> list[Path]:
    """Folders of complete checkpoints, newest first. A folder without its marker never took its final name."""
    return told.checkpoints(run)


def state_of(folder: Path) -> Progress | None:
    """The state of a complete checkpoint, without its tensors; None where it is damaged or of another format."""
    found = told.state(folder)
    try:
        return _progress(found) if found.get("format") == FORMAT else None
    except TypeError:
        return None


def _step(folder: Path) -> int:
    return told.step_of(folder) or 0


def _progress(found: dict[str, Any]) -> Progress:
    """Raises TypeError: other fields, or values of another type."""
    made = Progress(**found)
    if type(made.step) is not int or not isinstance(made.identity, dict):
        raise TypeError("step or identity is of another type")
    return made


def write(
    run: Path,
    progress: Progress,
    model: State,
    optim: State,
    pace: Pace | None = None,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write to a temporary folder, fsync, mark, rename, fsync. Interrupted anywhere, older checkpoints still stand.

    check: raises a UserError where the folder is no longer this run's; asked before anything is written or renamed.
    """
    check()
    final = folder_of(run, progress.step)
    if final in told.copies(run):
        raise FileExistsError(f"{final} holds the state of another step. Fix: move this copy out of checkpoints/")
    if (final / MARKER).exists():
        return final
    parts = final.with_name(f".{final.name}.partial")
    marker = write_files(parts, model, optim, pace)
    text = json.dumps(asdict(progress), indent=2).encode()
    (parts / FILES[2]).write_bytes(text)
    _sync(parts / FILES[2])
    marker[FILES[2]] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (parts / MARKER).write_text(json.dumps(marker, indent=2))
    _sync(parts / MARKER)
    _sync(parts)
    check()
    shutil.rmtree(final, ignore_errors=True)  # one without a marker, half deleted
    parts.rename(final)
    _sync(final.parent)
    return final


def write_files(parts: Path, model: State, optim: State, pace: Pace | None = None) -> dict[str, dict[str, Any]]:
    """Write the tensors to a new folder and fsync them; bytes and SHA-256 of what was written, by file."""
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    written = {}
    for name, tensors in zip(FILES, (model, optim), strict=False):
        written[name] = write_tensors(parts / name, tensors, pace)
        _sync(parts / name)
    return written


def retain(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and what interrupted writes left. A user's links stay."""
    for old in complete(run)[max(1, keep) :]:
        if not old.is_symlink():
            (old / MARKER).unlink()  # from here on it is no checkpoint, even if the rest of it survives a crash
            shutil.rmtree(old)
    for left in [*run.glob("checkpoints/.step-*.partial"), *run.glob("checkpoints/.step-*.damaged")]:
        if told.step_of(Path(left.stem[1:])) is not None:
            shutil.rmtree(left)
    for left in told.folders(run):
        if not (left / MARKER).exists() and not left.is_symlink():
            shutil.rmtree(left)


def read_newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that is complete and whole; None where a run has none yet.

    A damaged one is reported and passed over for the one before it.

    Raises:
        UserError: there are checkpoints, but none can be used: the run must not silently start afresh.
    """
    reasons = []
    for folder in complete(run):
        try:
            return read(folder)
        except UserError as error:
            log.warning("%s; trying the one before", error)
            reasons.append(str(error))
    # Old ones lose their marker only after a newer one stands: alone, a folder without one has been damaged.
    reasons += [f"{folder.name} lacks {MARKER}" for folder in told.folders(run) if not reasons]
    if reasons:
        raise UserError(
            f"{run}: no checkpoint can be used ({'; '.join(reasons)}); restore one, or take another train.run"
        )
    return None


def set_aside_after(run: Path, step: int) -> None:
    """Take their names from checkpoints of later steps than the one that is resumed: they are damaged.

    The run will write those steps again, and must not count the old ones among those that it keeps.
    """
    for folder in told.folders(run):
        if _step(folder) > step:
            aside = folder.with_name(f".{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def read(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        UserError: a file is missing, has another size or hash, or another format version.
    """
    try:
        marker = parse_json(read_text(folder / MARKER))
        for name in FILES:
            if (folder / name).stat().st_size != marker[name]["bytes"] or _sha256(folder / name) != marker[name][
                "sha256"
            ]:
                raise UserError(f"checkpoint {folder.name}: {name} is damaged (its hash is not the one written)")
        progress = parse_object(read_bytes(folder / FILES[2]))
        if progress.get("format") != FORMAT:
            raise UserError(
                f"checkpoint {folder.name} has format {progress.get('format')}, this version reads {FORMAT}"
            )
        state = _progress(progress)
        if told.step_of(folder) not in (None, state.step):
            raise UserError(f"checkpoint {folder.name} holds the state after step {state.step}")
        return Checkpoint(folder, state, *(read_tensors(folder / name) for name in FILES[:2]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder.name} cannot be read: {error}") from None


class Writer:
    """Writes checkpoints in a background thread, one at a time; an error surfaces at the next call.

    bandwidth: most MB/s, 0: no limit; whoever waits for a checkpoint lifts it. seconds, cpu, bytes: of the last one.
    check: see `write`.
    """

    def __init__(self, run: Path, keep: int, bandwidth: float = 0.0, check: Callable[[], None] = lambda: None) -> None:
        self.run, self.keep, self.bandwidth, self._check = run, keep, bandwidth, check
        self.seconds = self.cpu = 0.0
        self.bytes = 0
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, progress: Progress, model: State, optim: State) -> None:
        """Start writing; waits first for the one before."""
        self.wait()
        self._hurry.clear()
        self._thread = threading.Thread(target=self._work, args=(progress, model, optim), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the last submitted checkpoint stands.

        Raises:
            UserError: it could not be written (disk full), or the folder is no longer this run's.
        """
        if self._thread is not None:
            self._hurry.set()
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, UserError):
                raise error
            raise UserError(
                f"checkpoint could not be written to {self.run}: {error}; older ones still stand"
            ) from error

    def _work(self, progress: Progress, model: State, optim: State) -> None:
        began, used = time.perf_counter(), time.thread_time()
        try:
            folder = write(self.run, progress, model, optim, Pace(self.bandwidth, self._hurry), self._check)
            self.bytes = sum((folder / name).stat().st_size for name in FILES)
            retain(self.run, self.keep)
            self.seconds, self.cpu = time.perf_counter() - began, time.thread_time() - used
        except (OSError, SafetensorError, UserError) as error:
            self._error = error


def _sha256(path: Path) -> str:
    with open_regular(path, "rb") as file:
        digest: Any = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
