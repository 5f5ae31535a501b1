"""Pretrain a backbone with one process, or with several started by a launcher."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from simfle.api.input_shards import is_data
from simfle.commands.app import command, echo
from simfle.commands.next_steps import after_pretraining, refuse_folder, show_next
from simfle.config.overrides import format_override, parse_text
from simfle.config.schema import PretrainConfig, load
from simfle.errors import RunStopped, UserError
from simfle.runtime.entrypoint import gc_frozen_imports
from simfle.runtime.logs import log_to_stderr
from simfle.train.preflight import check


def pretrain(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG | DATA]",
            help="YAML such as configs/pretrain/simfle_resnet50.yaml; or a folder of images, an archive, or shards",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="e.g. data.shards=[shards/faces] train.steps=1000"),
    ] = None,
    out: Annotated[str | None, typer.Option(help="run folder, the same as train.run_dir=")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--config", help="DATA: YAML file (default: chosen for the number of images and the device)"),
    ] = None,
    processes: Annotated[
        int, typer.Option(help="number of local processes: one per GPU, or sharing the CPU cores", min=1)
    ] = 1,
) -> None:
    """Pretrain with SimFLE. Rerun with the same arguments to resume.

    From images: simfle pretrain path/to/faces --out runs/mine
    builds shards in runs/mine/shards, chooses and prints a configuration, trains, and exports the backbone.

    From a configuration:
    simfle pretrain configs/pretrain/simfle_resnet50.yaml data.shards=[shards/mine] --out runs/mine

    Several processes: --processes 8; or, from a configuration, any launcher, such as
    accelerate launch --use_deepspeed --num_processes 8 -m simfle pretrain CONFIG key=value ...
    """
    words = list(overrides or [])
    if config is not None and is_data(config):
        _from_data(config, out, recipe, words, processes)
        return
    if recipe is not None:
        raise UserError(f"--config={recipe}: only valid with DATA. Fix: name the file as the first argument.")
    if config is not None and "=" in config:  # no file, only key=value; Path would drop a slash of a URL
        words, config = [config, *words], None
    if out is not None:
        _refuse_twice(words, "train.run_dir", f"--out={out}")
        words.append(format_override("train.run_dir", out))
    _from_config(config, words, processes)


def _from_config(config: str | None, words: list[str], processes: int) -> None:
    if config is not None:
        refuse_folder(Path(config), "pretrain")
    resolved = load(PretrainConfig, Path(config) if config is not None else None, words)
    check(resolved)
    if processes > 1:
        from simfle.api.local_launcher import launch

        # The main process prints everything, including the name of the config file.
        sys.exit(launch([*([config] if config is not None else []), *words], processes))
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


def _from_data(data: str, out: str | None, config: Path | None, words: list[str], processes: int) -> None:
    """Build shards if necessary, choose a configuration unless one is given, train, and export the backbone."""
    from shards.io.atomic import expand_home
    from shards.io.urls import is_url

    _refuse_twice(words, "data.shards", f"{data}")
    if out is not None:
        _refuse_twice(words, "train.run_dir", f"--out={out}")
    elif named := [word for word in words if word.startswith("train.run_dir=")]:
        out = parse_text(named[-1].partition("=")[2])
        words = [word for word in words if word not in named]
    if not out:
        raise UserError(f"{data}: the run folder is missing. Fix: add --out runs/NAME.")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"{data}: a launcher started this command as one of several processes. Fix: use --processes N, or build "
            "shards first and name a configuration."
        )
    log_to_stderr()
    with gc_frozen_imports():
        from simfle.api.functions import prepare_run, train_and_export

    place = data if is_url(data) else str(expand_home(data))
    resolved = prepare_run([place], expand_home(out), config, words, processes)
    try:
        backbone = train_and_export(resolved, processes, relay=False)
    except RunStopped as stopped:
        echo(str(stopped), err=True)
        return
    echo(f"backbone: {backbone}")
    show_next(after_pretraining(Path(resolved.train.run_dir), resolved.data.shards))


def _refuse_twice(words: Sequence[str], key: str, other: str) -> None:
    """Raise UserError if key=value repeats an argument."""
    for word in words:
        if word.partition("=")[0].strip() == key:
            raise UserError(f"{word}: also set by {other}. Fix: set only one.")


main = command(pretrain)
