"""The run's folder: one run at a time, one configuration for ever, versions on record."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.files import replace_text
from shards.manifest import NAME as MANIFEST
from shards.redact import to_json, to_yaml
from simfle.config import PretrainConfig, identity, load
from simfle.errors import UserError
from simfle.provenance import git_revision, versions
from simfle.train import claim, origin
from simfle.train.checkpoint import complete


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """What a disk says (full, read-only, gone) becomes one line.

    Raises:
        UserError: with the file, where the system names one.
    """
    try:
        yield
    except ConnectionError:
        raise  # other processes went away: no matter of the disk
    except OSError as error:
        words = f"train.run={run}: {error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise UserError(f"{words}; mend it and start again: the run goes on after its last checkpoint") from error


@contextmanager
def claimed(run: Path, patience: float = 0.0, mine: claim.JobStart | None = None) -> Iterator[claim.Claim]:
    """Hold the folder for this run, see `claim.claimed`; a folder of shards is refused before anything is written."""
    _refuse_shards(run)
    with claim.claimed(run, patience, mine) as held:
        yield held


def settle_config(run: Path, config: PretrainConfig) -> None:
    """Write the resolved config, URLs without what is secret in them, and the versions; only to this run's own folder.

    Raises:
        UserError: the folder holds shards, or a run with another configuration; the differing keys are named.
    """
    refuse_other(run, config)
    _replace(run / "config.yaml", to_yaml(asdict(config)))
    _replace(run / "versions.json", to_json(versions() | {"git": git_revision()}, indent=2))


def refuse_other(run: Path, config: PretrainConfig) -> None:
    """Raise a UserError where the folder holds shards, or a run with another configuration. Writes nothing."""
    _refuse_shards(run)
    origin.refuse_copies(run)
    file = run / "config.yaml"
    if not origin.refuse_other_checkpoints(run, config, file) and file.exists() and complete(run):
        origin.refuse_difference(run, identity(load(PretrainConfig, file)), config)  # no checkpoint can tell
    origin.refuse_lost_checkpoints(run, file)


def _refuse_shards(run: Path) -> None:
    if (run / MANIFEST).exists():
        raise UserError(f"train.run={run} holds shards ({MANIFEST}); name a folder for the run, a new one or its own")


def describe(run: Path, facts: dict[str, Any]) -> None:
    """Write RUN/run.json: what one wants to know of a run from outside, such as its number of steps."""
    _replace(run / "run.json", to_json(facts, indent=2))


def _replace(path: Path, text: str) -> None:
    replace_text(path, path.with_name(f".{path.name}.partial"), text)
