"""`simfle plan`: estimate memory, network traffic, speed and bottleneck of a run."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shards.redact import to_json
from simfle.commands.app import command, echo
from simfle.config.schema import PretrainConfig, load
from simfle.errors import UserError

if TYPE_CHECKING:
    from simfle.plan.energy import RunCost
    from simfle.plan.estimate import ClusterSpec, DatasetSpec, Estimate
    from simfle.plan.hardware import Constants
    from simfle.plan.model_cost import ModelCost

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LEAST_EFFICIENT = 0.5  # fraction of a step spent on arithmetic, below which a submitted job is warned about
IMAGE_BYTES = 20_000  # a face of about 224 px as JPEG


@dataclasses.dataclass(frozen=True)
class Request:
    """Parsed command line.

    per_gpu: global batch per GPU (0 = the configuration's global batch); price: of a GPU hour (0 = unknown).
    """

    config: PretrainConfig
    machines: "ClusterSpec"
    corpus: "DatasetSpec"
    constants: "Constants"
    per_gpu: int
    price: float = 0.0


def plan_run(  # noqa: PLR0913, PLR0917 - one argument per option
    config: Annotated[str | None, typer.Argument(help="YAML such as configs/pretrain/simfle_resnet50.yaml")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. train.zero_stage=1")] = None,
    nodes: Annotated[int, typer.Option(help="number of machines")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs per machine (with --gpu cpu: processes)")] = 8,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100 or cpu")] = "h100",
    network: Annotated[str, typer.Option(help="network per machine: 100gb, 400gb, ethernet25, 8x400gb")] = "400gb",
    cores: Annotated[float, typer.Option(help="CPU cores per process")] = 12,
    images: Annotated[int, typer.Option(help="number of images in the corpus (0 = from data.shards)")] = 0,
    image_bytes: Annotated[float, typer.Option(help="mean bytes per image (0 = from data.shards)")] = 0,
    batch_per_gpu: Annotated[
        int, typer.Option(help="samples per GPU, which determine the global batch (0 = use train.global_batch)")
    ] = 0,
    constants: Annotated[
        list[Path] | None,
        typer.Option(help="JSON file that replaces constants, such as a benchmark's --out (repeatable)"),
    ] = None,
    watts: Annotated[float, typer.Option(help="power per GPU with its share of the machine (0 = maximum)")] = 0,
    pue: Annotated[float, typer.Option(help="energy of the data center / of its machines (0 = mean of a survey)")] = 0,
    grid_intensity: Annotated[float, typer.Option(help="g CO2e per kWh (0 = the world's mean)")] = 0,
    price: Annotated[float, typer.Option(help="price of a GPU hour, in any currency (0 = unknown)")] = 0,
    scaling_table: Annotated[
        bool, typer.Option("--scaling-table", help="print a Markdown table for 1 to 512 GPUs")
    ] = False,
    cost_table: Annotated[
        bool, typer.Option("--cost-table", help="print a Markdown table of hours, energy and emissions")
    ] = False,
    roofline_table: Annotated[
        bool, typer.Option("--roofline-table", help="print a Markdown table of a step's minimum time, by part")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Estimate memory, speed, bottleneck and energy of a run without running it. docs/scale.md explains the model."""
    arguments = list(overrides or [])
    if config is not None and "=" in config:
        arguments, config = [config, *arguments], None
    _check_numbers({"nodes": nodes, "gpus-per-node": gpus_per_node, "cores": cores}, above_zero=True)
    _check_numbers({"images": images, "image-bytes": image_bytes, "batch-per-gpu": batch_per_gpu})
    _check_numbers({"watts": watts, "pue": pue, "grid-intensity": grid_intensity, "price": price})
    resolved = load(PretrainConfig, Path(config) if config is not None else None, arguments)
    from simfle.plan.estimate import ClusterSpec
    from simfle.plan.hardware import load_constants, network_rate
    from simfle.plan.model_cost import measure_cost

    known = load_constants(constants or [])
    known.of(gpu, "conv")
    given = {f"{gpu}.watts": watts, "power.pue": pue, "grid.intensity": grid_intensity}
    known = known.replaced({name: value for name, value in given.items() if value}, "command line")
    machines = ClusterSpec(nodes, gpus_per_node, gpu, network_rate(network), cores)
    _check(resolved)
    request = Request(resolved, machines, _corpus(resolved, images, image_bytes), known, batch_per_gpu, price)
    if not (scaling_table or cost_table):
        _check_batch(request)
    work = measure_cost(resolved)
    if scaling_table or cost_table:
        echo(_markdown(request, work, COST_TABLE if cost_table else SCALING_TABLE))
    else:
        _print_estimate(request, work, _estimate(request, work), roofline_table=roofline_table, as_json=as_json)


def _print_estimate(
    request: Request, work: "ModelCost", found: "Estimate", *, roofline_table: bool, as_json: bool
) -> None:
    """Print an estimate as a table of the roofline, as JSON, or as text."""
    if roofline_table:
        from simfle.plan import roofline

        echo(roofline.roofline_table(found.roofline, found.batch.micro_batch * found.batch.grad_accum_steps))
    elif as_json:
        echo(to_json(_plain(request, work, found), indent=1))
    else:
        _show(request, work, found)


def _check_numbers(numbers: dict[str, float], above_zero: bool = False) -> None:
    """Raise UserError if a number is not finite, negative, or not above 0. A PUE is 0 (unknown) or at least 1."""
    for name, value in numbers.items():
        least = 1 if name == "pue" and value else 0
        if not math.isfinite(value) or value < least or (above_zero and not value):
            limit = "above 0" if above_zero else f"at least {least}"
            raise UserError(f"--{name}={value}: must be {limit} and finite. Fix: change it.")


def _check_batch(request: Request) -> None:
    """Raise UserError if the batch cannot be split across the processes, before the model is measured."""
    try:
        _with_batch(request)
    except UserError as error:
        problem, machines = str(error).partition(". Fix:")[0], request.machines
        raise UserError(
            f"{problem} (planned for --nodes {machines.nodes} --gpus-per-node {machines.per_node}). "
            "Fix: change it, or pass --batch-per-gpu N for N samples per GPU."
        ) from None


def efficiency_note(config: PretrainConfig, nodes: int, gpus_per_node: int) -> str:
    """Return a line about the efficiency of a job on GPUs, with this command's default hardware; local shards only."""
    from simfle.plan.estimate import ClusterSpec
    from simfle.plan.hardware import load_constants, network_rate
    from simfle.plan.model_cost import measure_cost

    machines = ClusterSpec(nodes, gpus_per_node, "h100", network_rate("400gb"), 12)
    request = Request(config, machines, _corpus(config, 0, 0), load_constants([]), 0)
    found = _estimate(request, measure_cost(config)).efficiency
    note = f"planned efficiency on {nodes * gpus_per_node} H100: {found:.0%} (simfle plan)"
    if found >= LEAST_EFFICIENT:
        return note
    return f"{note}; most of a step is not arithmetic. Fix: use fewer nodes, or a larger train.global_batch"


def _check(config: PretrainConfig) -> None:
    """Run the checks of the trainer."""
    from simfle.data.loader import choose_backend
    from simfle.train.preflight import check

    shards = config.data.shards or ["planned"]
    check(dataclasses.replace(config, data=dataclasses.replace(config.data, shards=shards)))
    import torch

    choose_backend(config.data.backend, torch.device("cpu"))


def _corpus(config: PretrainConfig, images: int, image_bytes: float) -> "DatasetSpec":
    from simfle.plan.estimate import DatasetSpec

    if config.data.shards and not config.data.resampled and not (images and image_bytes):
        from simfle.data.dataset import open_corpus

        opened = open_corpus(config.data)
        shards = [shard for _, shard in opened.shards]
        samples = sum(shard.samples for shard in shards)
        return DatasetSpec(images or samples, image_bytes or sum(shard.bytes for shard in shards) / samples)
    if not images and not config.train.steps:
        raise UserError("--images=0: the size of the corpus is unknown. Fix: pass --images N or data.shards=[FOLDER].")
    return DatasetSpec(images, image_bytes or IMAGE_BYTES)


def _with_batch(request: Request) -> PretrainConfig:
    from simfle.runtime.distributed import compute_batch_layout

    config, processes = request.config, request.machines.processes
    if request.per_gpu:
        train = dataclasses.replace(config.train, global_batch=request.per_gpu * processes)
        config = dataclasses.replace(config, train=train)
    compute_batch_layout(config.train, processes)
    batch, images = config.train.global_batch, request.corpus.images
    if images and images < batch:
        raise UserError(f"train.global_batch={batch}: larger than the corpus of {images} images. Fix: lower it.")
    return config


def _estimate(request: Request, work: "ModelCost") -> "Estimate":
    from simfle.plan.estimate import estimate

    return estimate(_with_batch(request), work, request.machines, request.corpus, request.constants)


def _used(request: Request) -> list[str]:
    """Return the names of the constants that this plan uses."""
    return [name for name in request.constants.figures if "." not in name or _concerns(name, request.machines.device)]


def _concerns(name: str, device: str) -> bool:
    from simfle.plan.hardware import DEVICES

    owner = name.split(".", maxsplit=1)[0]
    return owner == device or owner not in DEVICES


def _plain(request: Request, work: "ModelCost", found: "Estimate") -> dict[str, Any]:
    figures = {name: dataclasses.asdict(request.constants.figures[name]) for name in _used(request)}
    return {
        "machines": dataclasses.asdict(request.machines),
        "corpus": dataclasses.asdict(request.corpus),
        "model": dataclasses.asdict(work),
        "plan": found.as_dict(),
        "cost": dataclasses.asdict(_cost(request, found)),
        "constants": figures,
    }


def _markdown(request: Request, work: "ModelCost", table: "PlanTable") -> str:
    """Return one row per number of GPUs, rounded up to whole nodes: with 6 per node, 12 instead of 8."""
    width = len(table.columns)
    lines = [f"| {' | '.join(table.columns)} |", "|" + "---:|" * table.numbers + "---|" * (width - table.numbers)]
    for gpus in SIZES:
        per_node = min(gpus, request.machines.per_node)
        machines = dataclasses.replace(request.machines, nodes=-(-gpus // per_node), per_node=per_node)
        row = dataclasses.replace(request, machines=machines)
        try:
            cells = table.cells(row, _estimate(row, work))
        except UserError as error:
            lines.append(f"| {machines.processes} | refused: {str(error).partition('. Fix:')[0]}" + " |" * (width - 1))
            continue
        lines.append(f"| {' | '.join([str(machines.processes), *cells])} |")
    return "\n".join(lines)


def _scaling_cells(request: Request, found: "Estimate") -> list[str]:
    batch = found.batch
    share = f"{batch.micro_batch}" + (f" x {batch.grad_accum_steps}" if batch.grad_accum_steps > 1 else "")
    memory, sent = f"{found.memory.total / 1e9:.1f} GB", f"{found.traffic.total / 1e6:,.0f} MB"
    speed = [f"{found.images_per_second:,.0f}", f"{found.efficiency:.0%}", f"{found.hours:,.2f}", found.bottleneck]
    return [f"{batch.global_batch:,}", share, memory, sent, *speed]


def _cost_cells(request: Request, found: "Estimate") -> list[str]:
    cost = _cost(request, found)
    return [f"{found.hours:,.2f}", f"{cost.gpu_hours:,.1f}", f"{cost.kwh:,.1f}", f"{cost.co2e:,.1f}"]


@dataclasses.dataclass(frozen=True)
class PlanTable:
    """Markdown table. numbers: how many of its columns are right-aligned; cells: of a row, without the first column."""

    columns: tuple[str, ...]
    numbers: int
    cells: "Callable[[Request, Estimate], list[str]]"


SCALING_TABLE = PlanTable(
    ("GPUs", "global batch", "per GPU", "memory", "sent", "images/s", "efficiency", "hours", "bottleneck"),
    8,
    _scaling_cells,
)
COST_TABLE = PlanTable(("GPUs", "hours", "GPU hours", "kWh", "kg CO2e"), 5, _cost_cells)


def _cost(request: Request, found: "Estimate") -> "RunCost":
    from simfle.plan.energy import run_cost

    return run_cost(found.hours, request.machines, request.constants, request.price)


def _show(request: Request, work: "ModelCost", found: "Estimate") -> None:
    from rich.table import Table

    from simfle.runtime.console import Console

    table = Table(title=_title(request), title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    for group in _rows(request, work, found):
        for name, text in group:
            table.add_row(name, text)
        table.add_section()
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for hint in found.advice:
        console.print(f"advice: {hint}")
    kinds = [request.constants.figures[name].kind for name in _used(request)]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    console.print(f"constants: {counts} (--json lists them, --constants replaces them). All values are estimates.")


def _title(request: Request) -> str:
    m = request.machines
    return f"{m.nodes} x {m.per_node} {m.device}, {m.network * 8 / 1e9:.0f} Gb/s per node"


def _rows(request: Request, work: "ModelCost", found: "Estimate") -> list[list[tuple[str, str]]]:
    from simfle.plan.roofline import TARGET

    held, sent, batch, processes = found.memory, found.traffic, found.batch, request.machines.processes
    limit = request.constants.of(request.machines.device, "memory")
    seconds = [
        ("arithmetic", f"{found.times.compute * 1e3:,.1f} ms"),
        ("launching operations", f"{found.times.launches * 1e3:,.1f} ms, in parallel with arithmetic"),
        ("network", f"{found.times.network * 1e3:,.1f} ms, {found.times.exposed * 1e3:,.1f} ms of it not overlapped"),
        ("loading", f"{found.loading * 1e3:,.1f} ms, in parallel with the step"),
        ("step", f"{found.step * 1e3:,.1f} ms"),
    ]
    limit_rate = f"the limit is {found.images_per_second / found.of_roofline:,.0f} images/s"
    decode, storage, saved = found.decode, found.storage, found.checkpoint
    took = f"blocks for {saved['hold_up']:.1f} s, then {saved['written']:.1f} s in the background"
    where = "on the GPU, DALI" if decode["on_device"] else f"on {decode['cores']:g} cores, OpenCV"
    again = "read once, then from the nodes' memory" if storage["cached"] else "read in every epoch"
    return [
        [
            ("batch", f"{batch.global_batch:,} = {processes} x {batch.micro_batch} x {batch.grad_accum_steps}"),
            ("ZeRO stage", f"{found.stage.number}: {found.stage.reason}"),
            ("parameters", f"{work.parameters / 1e6:.1f} M, {work.trained / 1e6:.1f} M of them trainable"),
            ("arithmetic per image", f"{found.flops_per_image / 1e9:.1f} GFLOP"),
        ],
        [(f"memory: {name}", f"{value / 1e9:.2f} GB") for name, value in dataclasses.asdict(held).items()]
        + [("memory per process", f"{held.total / 1e9:.1f} of {limit / 1e9:.0f} GB")],
        [
            (f"sent: {name.replace('_', '-')}", f"{value / 1e6:,.1f} MB")
            for name, value in dataclasses.asdict(sent).items()
            if name != "collectives" and value
        ]
        + [("sent per process and step", f"{sent.total / 1e6:,.1f} MB in {sent.collectives} collectives")],
        seconds,
        [
            (
                f"roofline: {part.name}",
                f"{part.flops / 1e12:,.2f} TFLOP, {part.bytes / 1e9:,.1f} GB; "
                f"{part.seconds * 1e3:,.1f} ms, by {part.bound}",
            )
            for part in found.roofline
        ]
        + [("share of the roofline", f"{found.of_roofline:.0%}; target at least {TARGET:.0%} ({limit_rate})")],
        [
            ("speed", f"{found.images_per_second:,.0f} images/s"),
            ("efficiency", f"{found.efficiency:.0%} of arithmetic alone; {found.utilization:.1%} of peak"),
            ("run", f"{found.steps:,} steps, {found.hours:,.2f} hours"),
            ("checkpoint", f"{saved['bytes'] / 1e9:.2f} GB, {took}"),
            ("storage", f"{storage['node_bytes_per_second'] / 1e6:,.1f} MB/s per node; {again}"),
            ("decoding", f"{decode['needed_per_process']:,.0f} of {decode['possible_per_process']:,.0f}/s {where}"),
            ("bottleneck", found.bottleneck),
        ],
        _cost_rows(request, _cost(request, found)),
    ]  # fmt: skip


def _cost_rows(request: Request, cost: "RunCost") -> list[tuple[str, str]]:
    c = request.constants
    watts, pue, intensity = c.of(request.machines.device, "watts"), c["power.pue"], c["grid.intensity"]
    return [
        ("GPU hours", f"{cost.gpu_hours:,.1f}" + (f", price {cost.price:,.2f}" if request.price else "")),
        ("energy", f"{cost.kwh:,.1f} kWh = GPU hours x {watts:,.0f} W x PUE {pue:g}"),
        ("emissions", f"{cost.co2e:,.1f} kg CO2e at {intensity:g} g/kWh"),
    ]


main = command(plan_run)
