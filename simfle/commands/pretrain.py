"""Pretrain a backbone: one process, or as many as the launcher starts."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.config import PretrainConfig, load
from simfle.errors import RunStopped
from simfle.process import loading
from simfle.terminal import log_to_stderr
from simfle.train.check import check


def pretrain(
    config: Annotated[str | None, typer.Argument(help="YAML such as configs/pretrain/simfle_resnet50.yaml")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. data.shards=[shards/faces]")] = None,
    processes: Annotated[
        int, typer.Option(help="so many processes on this machine: one per GPU, or sharing its cores", min=1)
    ] = 1,
) -> None:
    """Pretrain with SimFLE. Started again with the same configuration it goes on where the run stands.

    For example: simfle pretrain configs/pretrain/simfle_resnet50.yaml data.shards=[shards/mine] train.run=runs/mine

    Several processes: --processes 8, or any launcher, such as
    accelerate launch --use_deepspeed --num_processes 8 -m simfle pretrain CONFIG key=value ...
    """
    arguments = list(overrides or [])
    if config is not None and "=" in config:  # no file, only key=value; as a path, a URL would lose a slash
        arguments, config = [config, *arguments], None
    resolved = load(PretrainConfig, Path(config) if config is not None else None, arguments)
    check(resolved)
    if processes > 1:
        from simfle.api.launch import launch

        # The main process says which file was taken, and everything else.
        sys.exit(launch([*([config] if config is not None else []), *arguments], processes))
    log_to_stderr()
    with loading():
        from simfle.train.trainer import pretrain as run

    try:
        run(resolved)
    except RunStopped as stopped:
        echo(str(stopped), err=True)


main = command(pretrain)
