"""`simfle bench train`: training with and without data loading; cost of data and checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simfle.commands.app import Figures, command, echo
from simfle.errors import UserError

if TYPE_CHECKING:
    from simfle.bench.runs import Measurement
    from simfle.config.schema import TrainConfig


def bench_train(
    config: Annotated[str | None, typer.Argument(help="YAML such as configs/pretrain/simfle_resnet50.yaml")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value (without data.shards: synthetic faces)")
    ] = None,
    steps: Annotated[int, typer.Option(help="steps per repetition", min=1)] = 20,
    rounds: Annotated[int, typer.Option(help="number of rounds; each variant runs once per round", min=1)] = 5,
    processes: Annotated[
        int, typer.Option(help="number of processes whose communication cost is also measured (1 = none)", min=1)
    ] = 1,
    out: Figures = None,
) -> None:
    """Measure images/s with and without the loader, and the fractions of time for data, checkpoints, communication."""
    from simfle.runtime.entrypoint import gc_frozen_imports

    with gc_frozen_imports():
        from simfle.bench import runs, timing, train
        from simfle.config.schema import PretrainConfig, load
        from simfle.train.pretrain import open_trainer
    arguments = list(overrides or [])
    if config is not None and "=" in config:
        arguments, config = [config, *arguments], None
    if processes > 1 and not any(word.startswith("data.shards=") for word in arguments):
        raise UserError(f"--processes={processes}: each process reads its own samples. Fix: set data.shards.")
    resolved = load(PretrainConfig, Path(config) if config is not None else None, arguments)
    with runs.scratch(resolved) as mine:
        communication = None
        if processes > 1:
            words = [*([config] if config is not None else []), *arguments]
            communication = _communication(words, mine.train, processes, steps)
        with open_trainer(mine) as run:
            found, shares = train.measure(run, steps, rounds)
            device, backend, batch = run.world.device, run.loader.backend_name, run.layout.global_batch
    result = {
        "ways": {name: each.as_dict() for name, each in found.items()},
        **_rates(found, steps * batch),
        "shares": {"data": shares.data, "checkpoints": shares.checkpoints, "communication": communication},
        "batch": batch,
        "backend": backend,
        **timing.about(device),
    }
    runs.show(f"{steps} steps of {batch} images, {backend}, {device.type}", found)
    _show(result, processes, mine.train.checkpoint_every, shares.bytes)
    timing.save(result, out)


def _communication(words: list[str], train: "TrainConfig", processes: int, steps: int) -> float:
    """Measure the fraction of a step that `processes` processes spend on communication; `words`: configuration."""
    from simfle.bench import scaling

    share = max(2, train.global_batch // processes)
    folder = Path(train.run_dir).parent
    return scaling.measure(words, processes, share, steps + scaling.WARM_UP, folder).communication


def _rates(found: "dict[str, Measurement]", images: int) -> dict[str, float]:
    """Compute images per second with data, and the speed relative to steps without a loader; `images`: per
    repetition."""
    from simfle.bench.train import DATA, FREE

    return {
        "images_per_second": images / found[DATA].median,
        "images_per_cpu_second": images / found[DATA].cpu_median,
        "against_loader_free": found[FREE].median / found[DATA].median,
        "against_loader_free_cpu": found[FREE].cpu_median / found[DATA].cpu_median,
    }


def _show(result: dict[str, Any], processes: int, interval: int, checkpoint_bytes: int) -> None:
    """Print rates and fractions; `interval`: steps between checkpoints."""
    shares, clock, cpu = result["shares"], result["against_loader_free"], result["against_loader_free_cpu"]
    echo(
        f"{result['images_per_second']:.4g} images/s, {result['images_per_cpu_second']:.4g} per CPU second; relative "
        f"to the loader-free step: {clock:.3f} by wall-clock time (target: 0.95), {cpu:.3f} by CPU time"
    )
    communication = shares["communication"]
    told = "not measured (--processes)" if communication is None else f"{communication:.1%} with {processes} processes"
    echo(
        f"waiting for data {shares['data']:.2%}; blocked by checkpoints {shares['checkpoints']:.3%} at "
        f"train.checkpoint_every={interval} ({checkpoint_bytes / 1e6:.0f} MB each); communication {told}"
    )
    echo(f"load average {result['machine']['load']} on {result['machine']['cores']} cores")


main = command(bench_train)
