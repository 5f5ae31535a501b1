"""`simfle bench step`: a SimFLE training step, compared with a plain step, its backbone alone and the hardware
limit."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import Figures, command, echo
from simfle.config.schema import PretrainConfig, load
from simfle.config.unused_fields import unused_fields
from simfle.config.validate import validate
from simfle.errors import UserError


def bench_step(
    config: Annotated[str | None, typer.Argument(help="YAML such as configs/pretrain/simfle_resnet50.yaml")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. model.backbone=resnet18")] = None,
    batch: Annotated[int, typer.Option(help="images per step")] = 8,
    rounds: Annotated[int, typer.Option(help="number of rounds; each variant runs once per round")] = 5,
    matmul_size: Annotated[
        int, typer.Option(help="side of the matrices whose product is measured (0 = by device)")
    ] = 0,
    out: Figures = None,
) -> None:
    """Measure images per second of one step: medians over rounds; all variants alternate on the same images."""
    arguments = list(overrides or [])
    if config is not None and "=" in config:
        arguments, config = [config, *arguments], None
    if batch < 2:
        raise UserError(f"--batch={batch}: BatchNorm needs at least 2 images. Fix: raise it.")
    resolved = load(PretrainConfig, Path(config) if config is not None else None, arguments)
    validate(resolved, unused=unused_fields(resolved))
    if resolved.model.method != "simfle":
        raise UserError(f"model.method={resolved.model.method}: no plain step. Fix: set model.method=simfle.")
    import torch

    from simfle.bench import step, timing
    from simfle.plan.model_cost import measure_cost
    from simfle.runtime.distributed import init_distributed

    with init_distributed(resolved.train) as world:
        torch.manual_seed(0)
        cuda = world.device.type == "cuda"
        ways = step.variants(resolved, batch, world, matmul_size or (8192 if cuda else 2048))
        work = {name: step.operations(ways[name].run) / batch for name in (step.BACKBONE, step.MASKED)}
        found = timing.measure(ways, rounds, world.device)
        result = timing.report(found, world.device, constants=step.constants(found, work, world.device))
        if cuda:
            result["memory_bytes"] = torch.cuda.max_memory_allocated(world.device)
    counted = measure_cost(resolved)
    each = counted.conv.each + counted.matmul.each
    conv, matmul = (found[name].rate * work[name] for name in (step.BACKBONE, step.MASKED))
    result |= {
        "config": dataclasses.asdict(resolved),
        "batch": batch,
        "operations_per_image": each,
        "utilization": each * found[step.OURS].rate / found[step.PRODUCT].rate,
        "model_images_per_second": 1 / (counted.conv.each / conv + counted.matmul.each / matmul),
    }
    timing.show(f"a step of {batch} images", found, "images (operations) per second", step.REFERENCE)
    echo(
        f"{each / 1e9:.1f} GFLOP per image: ours reaches {result['utilization']:.1%} of the matrix product's rate; at "
        f"the rates of backbone and autoencoder alone it would reach {result['model_images_per_second']:.3g} images/s"
    )
    echo(f"load average {result['machine']['load']} on {result['machine']['cores']} cores")
    timing.save(result, out)


main = command(bench_step)
