"""A submission as it was: code, configuration and cluster, copied beside the run. Later edits change nothing."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from simfle.config import PretrainConfig
from simfle.errors import UserError
from simfle.provenance import REVISION, git_revision
from simfle.slurm.config import ClusterConfig

SCHEMES = "://"


def freeze(run: Path, config: Any, cluster: ClusterConfig, name: str = "") -> Path:
    """Make RUN/slurm/TIME with code/, config.yaml and cluster.yaml; the folder, which is its owner's alone.

    It will hold the submission script and what processes print, too: either may show values of cluster.environment.

    Raises:
        UserError: the run's folder cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S") + (f"-{name}" if name else "")
    try:
        (run / "slurm").mkdir(parents=True, exist_ok=True)
        job = _new_folder(run / "slurm", stamp)
        for package in ("simfle", "shards"):
            _copy_package(package, job / "code")
        (job / "code" / "simfle" / REVISION).write_text(git_revision() or "")
    except OSError as error:
        raise UserError(f"train.run={run} cannot be written: {error.strerror}") from None
    write(job / "config.yaml", config)
    write(job / "cluster.yaml", cluster)
    return job


def write(file: Path, config: Any) -> None:
    """Write a config dataclass as YAML, every value resolved; for its owner alone, since URLs may carry signatures."""
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def absolute(config: PretrainConfig) -> PretrainConfig:
    """The same run, its paths no longer relative to where it was submitted."""
    data = dataclasses.replace(
        config.data,
        shards=[place if SCHEMES in place else str(Path(place).absolute()) for place in config.data.shards],
        cache=str(Path(config.data.cache).absolute()) if config.data.cache else "",
    )
    train = dataclasses.replace(config.train, run=str(Path(config.train.run).absolute()))
    return dataclasses.replace(config, data=data, train=train)


def _copy_package(package: str, code: Path) -> None:
    """From where this very process has it: a checkout, or an installed wheel."""
    module = __import__(package)
    (source,) = module.__path__
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    shutil.copytree(source, code / package, ignore=ignored)


def _new_folder(parent: Path, stamp: str) -> Path:
    for number in range(1000):
        folder = parent / (stamp if number == 0 else f"{stamp}-{number}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{parent} holds a thousand submissions of this second")
