"""`simfle bench checkpoint`: time for which a checkpoint blocks training, and cost of its background write."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import Figures, command, echo


def bench_checkpoint(
    config: Annotated[str | None, typer.Argument(help="YAML such as configs/pretrain/simfle_resnet50.yaml")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value (without data.shards: synthetic faces)")
    ] = None,
    steps: Annotated[int, typer.Option(help="steps per repetition", min=1)] = 5,
    rounds: Annotated[int, typer.Option(help="number of rounds; each variant runs once per round", min=1)] = 5,
    out: Figures = None,
) -> None:
    """Measure a checkpoint: seconds to copy and to write, bytes, MB/s, and the fraction of training time it blocks."""
    from simfle.runtime.entrypoint import gc_frozen_imports

    with gc_frozen_imports():
        from simfle.bench import checkpoint, runs, timing
        from simfle.config.schema import PretrainConfig, load
        from simfle.train.pretrain import open_trainer
    arguments = list(overrides or [])
    if config is not None and "=" in config:
        arguments, config = [config, *arguments], None
    resolved = load(PretrainConfig, Path(config) if config is not None else None, arguments)
    with runs.scratch(resolved) as mine, open_trainer(mine) as run:
        found, facts = checkpoint.measure(run, steps, rounds)
        device, batch = run.world.device, run.layout.global_batch
    result = {"ways": {name: each.as_dict() for name, each in found.items()}, **facts, **timing.about(device)}
    runs.show(f"a checkpoint of {facts['bytes'] / 1e6:.1f} MB, {device.type}", found)
    echo(
        f"written at {facts['MB/s']:.4g} MB/s; training is blocked for {facts['held_up']:.3%} of wall-clock time, "
        f"{facts['held_up_cpu']:.3%} of CPU time, at train.checkpoint_every={facts['interval']} and {batch} images per "
        "step (target: 1%)"
    )
    echo(f"load average {result['machine']['load']} on {result['machine']['cores']} cores")
    timing.save(result, out)


main = command(bench_checkpoint)
