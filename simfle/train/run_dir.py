"""Run folder: one run at a time, one configuration for all starts, recorded versions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.format.manifest import NAME as MANIFEST
from shards.io.atomic import replace_text
from shards.redact import to_json, to_yaml
from simfle.config.schema import PretrainConfig, load, run_identity
from simfle.errors import UserError
from simfle.runtime.provenance import git_revision, versions
from simfle.train import identity_check, run_lock
from simfle.train.checkpointing.checkpoint import complete_checkpoints


@contextmanager
def disk_errors_as_user_errors(run: Path) -> Iterator[None]:
    """Convert disk errors (full, read-only, unmounted) to one line.

    Raises:
        UserError: If the disk is full or fails. The error names the file if the system names one.
    """
    try:
        yield
    except ConnectionError:
        raise  # other processes were lost, which is not a disk error
    except OSError as error:
        words = f"train.run_dir={run}: {error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise UserError(f"{words}. Fix: resolve this and rerun; training resumes from the last checkpoint.") from error


@contextmanager
def run_dir_lock(
    run: Path, lock_timeout: float = 0.0, mine: run_lock.JobStart | None = None
) -> Iterator[run_lock.RunLock]:
    """Lock the folder for this run, see `run_lock.lock_run_dir`; raise UserError for a shard folder before any
    write."""
    _refuse_shards(run)
    with run_lock.lock_run_dir(run, lock_timeout, mine) as held:
        yield held


def record_config(run: Path, config: PretrainConfig) -> None:
    """Write the resolved config, without secrets in URLs, and the versions; only to this run's own folder.

    Raises:
        UserError: If the folder holds shards, or a run with another configuration (the message names the differing
            keys).
    """
    check_same_config(run, config)
    replace_text(run / "config.yaml", to_yaml(asdict(config)))
    replace_text(run / "versions.json", to_json(versions() | {"git": git_revision()}, indent=2))


def check_same_config(run: Path, config: PretrainConfig) -> None:
    """Raise a UserError if the folder holds shards, or a run with another configuration. Writes nothing."""
    _refuse_shards(run)
    identity_check.refuse_old_format(run)
    identity_check.refuse_copies(run)
    file, start = run / "config.yaml", identity_check.StartIdentity.of(config)
    if not identity_check.refuse_other_checkpoints(run, start, file) and file.exists() and complete_checkpoints(run):
        identity_check.refuse_difference(run, run_identity(load(PretrainConfig, file)), start)  # no valid checkpoint
    identity_check.refuse_lost_checkpoints(run, file)


def _refuse_shards(run: Path) -> None:
    if (run / MANIFEST).exists():
        raise UserError(
            f"train.run_dir={run}: a shard folder ({MANIFEST}). Fix: use a new folder, or the folder of this run."
        )


def write_run_json(run: Path, facts: dict[str, Any]) -> None:
    """Write RUN/run.json: facts about the run for other programs, such as its number of steps."""
    replace_text(run / "run.json", to_json(facts, indent=2))
