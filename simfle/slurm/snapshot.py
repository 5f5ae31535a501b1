"""Freeze a submission: copy code, configuration and cluster beside the run, so that later edits do not affect it."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from simfle.config.parsing import absolute_source
from simfle.config.schema import PretrainConfig
from simfle.errors import UserError
from simfle.runtime.provenance import REVISION, git_revision
from simfle.slurm.config import ClusterConfig

SCHEMES = "://"


def snapshot(run: Path, config: Any, cluster: ClusterConfig, name: str = "") -> Path:
    """Create RUN/slurm/TIME with code/, config.yaml and cluster.yaml; return the folder, readable only by its owner.

    The folder will also contain the submission script and the output of processes, which may show values of
    cluster.env.

    Raises:
        UserError: If the run folder cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S") + (f"-{name}" if name else "")
    try:
        (run / "slurm").mkdir(parents=True, exist_ok=True)
        job = _new_folder(run / "slurm", stamp)
        for package in ("simfle", "shards"):
            _copy_package(package, job / "code")
        (job / "code" / "simfle" / REVISION).write_text(git_revision() or "")
    except OSError as error:
        raise UserError(f"train.run_dir={run}: cannot be written: {error.strerror}. Fix: use another folder.") from None
    write(job / "config.yaml", config)
    write(job / "cluster.yaml", cluster)
    return job


def write(file: Path, config: Any) -> None:
    """Write a config dataclass as resolved YAML, readable only by its owner, because URLs may contain signatures."""
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def absolute(config: PretrainConfig) -> PretrainConfig:
    """Return the same run with absolute paths."""
    data = dataclasses.replace(
        config.data,
        shards=[place if SCHEMES in place else str(Path(place).absolute()) for place in config.data.shards],
        cache_dir=str(Path(config.data.cache_dir).absolute()) if config.data.cache_dir else "",
    )
    model = dataclasses.replace(config.model, init=absolute_source(config.model.init))
    train = dataclasses.replace(config.train, run_dir=str(Path(config.train.run_dir).absolute()))
    return dataclasses.replace(config, data=data, model=model, train=train)


def _copy_package(package: str, code: Path) -> None:
    """Copy a package from its current location: a checkout, or an installed wheel."""
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
    raise UserError(f"{parent}: a thousand submissions in this second. Fix: rerun the command.")
