"""`simfle bench step`: a SimFLE training step, compared with a plain step, its backbone alone and the hardware
limit."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simfle.commands.app import Figures, command, echo
from simfle.config.schema import PretrainConfig, load
from simfle.config.unused_fields import unused_fields
from simfle.config.validate import validate
from simfle.errors import UserError

if TYPE_CHECKING:
    from simfle.bench.timing import Timing


def bench_step(
    config: Annotated[str | None, typer.Argument(help="YAML such as configs/pretrain/simfle_resnet50.yaml")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. model.backbone=resnet18")] = None,
    batch: Annotated[int, typer.Option(help="images per step")] = 8,
    rounds: Annotated[int, typer.Option(help="number of rounds; each variant runs once per round")] = 5,
    matmul_size: Annotated[
        int, typer.Option(help="side of the matrices whose product is measured (0 = by device)")
    ] = 0,
    stages: Annotated[
        str, typer.Option(help="ZeRO stages with commas between them, to compare in one process (default: none)")
    ] = "",
    ours_only: Annotated[bool, typer.Option("--ours-only", help="leave out the plain step and the limits")] = False,
    out: Figures = None,
) -> None:
    """Measure images per second of one step: medians over rounds; all variants alternate on the same images."""
    arguments = list(overrides or [])
    if config is not None and "=" in config:
        arguments, config = [config, *arguments], None
    if batch < 2:
        raise UserError(f"--batch={batch}: BatchNorm needs at least 2 images. Fix: raise it.")
    forced = _stages(stages)
    resolved = load(PretrainConfig, Path(config) if config is not None else None, arguments)
    validate(resolved, unused=unused_fields(resolved))
    if resolved.model.method != "simfle":
        raise UserError(f"model.method={resolved.model.method}: no plain step. Fix: set model.method=simfle.")
    import torch

    from simfle.bench import step, timing
    from simfle.runtime.distributed import init_distributed

    with init_distributed(resolved.train) as world:
        torch.manual_seed(0)
        side = matmul_size or (8192 if world.device.type == "cuda" else 2048)
        peak = step.peak_bytes(resolved, batch, world)
        ways = step.variants(resolved, batch, world, side, forced, ours_only=ours_only)
        limits = [name for name in (step.BACKBONE, step.MASKED) if name in ways]
        work = {name: step.operations(ways[name].run) / batch for name in limits}
        found = timing.measure(ways, rounds, world.device)
        known = step.constants(found, work, world.device) if work else {}
        result = timing.report(found, world.device, constants=known, batch=batch, config=dataclasses.asdict(resolved))
        result |= step.against_plan(resolved, batch, found[step.OURS].rate, world.device)
        if peak:
            result["memory_bytes"] = peak
    base = step.REFERENCE if step.REFERENCE in found else step.OURS
    timing.show(f"a step of {batch} images", found, "images (operations) per second", base)
    if work:
        result |= _limits(resolved, found, work)
        echo(
            f"{result['operations_per_image'] / 1e9:.1f} GFLOP per image: ours reaches {result['utilization']:.1%} of "
            "the matrix product's rate; at the rates of backbone and autoencoder alone it would reach "
            f"{result['model_images_per_second']:.3g} images/s"
        )
    if "of_roofline" in result:
        limit = result["roofline_images_per_second"]
        echo(f"ours reaches {result['of_roofline']:.0%} of the roofline of an eager step, {limit:,.4g} images/s")
    echo(f"load average {result['machine']['load']} on {result['machine']['cores']} cores")
    timing.save(result, out)


def _stages(text: str) -> list[int]:
    """Parse a list of ZeRO stages. Raises UserError."""
    words = [word for word in text.split(",") if word]
    if not set(words) <= {"0", "1", "2", "3"}:
        raise UserError(f"--stages={text}: not a list of ZeRO stages. Fix: write them as 0,1,2,3.")
    return [int(word) for word in words]


def _limits(config: PretrainConfig, found: "dict[str, Timing]", work: dict[str, float]) -> dict[str, float]:
    """Compare our step with the rates of a matrix product, of the backbone and of the masked autoencoder."""
    from simfle.bench import step
    from simfle.plan.model_cost import measure_cost

    counted = measure_cost(config)
    each = counted.conv.each + counted.matmul.each
    conv, matmul = (found[name].rate * work[name] for name in (step.BACKBONE, step.MASKED))
    return {
        "operations_per_image": each,
        "utilization": each * found[step.OURS].rate / found[step.PRODUCT].rate,
        "model_images_per_second": 1 / (counted.conv.each / conv + counted.matmul.each / matmul),
    }


main = command(bench_step)
