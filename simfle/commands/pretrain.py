"""Pretrain a backbone with one process, or with several started by a launcher."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.next_steps import after_pretraining, refuse_folder, show_next
from simfle.config.schema import PretrainConfig, load
from simfle.errors import RunStopped
from simfle.runtime.entrypoint import gc_frozen_imports
from simfle.runtime.logs import log_to_stderr
from simfle.train.preflight import check


def pretrain(
    config: Annotated[str | None, typer.Argument(help="YAML such as configs/pretrain/simfle_resnet50.yaml")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. data.shards=[shards/faces]")] = None,
    processes: Annotated[
        int, typer.Option(help="number of local processes: one per GPU, or sharing the CPU cores", min=1)
    ] = 1,
) -> None:
    """Pretrain with SimFLE. Rerun with the same configuration to resume.

    For example: simfle pretrain configs/pretrain/simfle_resnet50.yaml data.shards=[shards/mine] train.run_dir=runs/mine

    Several processes: --processes 8, or any launcher, such as
    accelerate launch --use_deepspeed --num_processes 8 -m simfle pretrain CONFIG key=value ...
    """
    arguments = list(overrides or [])
    if config is not None and "=" in config:  # no file, only key=value; Path would drop a slash of a URL
        arguments, config = [config, *arguments], None
    if config is not None:
        refuse_folder(Path(config), "pretrain")
    resolved = load(PretrainConfig, Path(config) if config is not None else None, arguments)
    check(resolved)
    if processes > 1:
        from simfle.api.local_launcher import launch

        # The main process prints everything, including the name of the config file.
        sys.exit(launch([*([config] if config is not None else []), *arguments], processes))
    log_to_stderr()
    with gc_frozen_imports():
        from simfle.train.pretrain import pretrain as run

    try:
        run(resolved)
    except RunStopped as stopped:
        echo(str(stopped), err=True)
        return
    if os.environ.get("RANK", "0") == "0":
        show_next(after_pretraining(Path(resolved.train.run_dir), resolved.data.shards))


main = command(pretrain)
