"""`simfle bench peers`: loader, step and whole command, compared with lightly and LightlyTrain."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simfle.commands.app import Figures, command, echo
from simfle.errors import UserError

if TYPE_CHECKING:
    import torch

    from simfle.config.schema import PretrainConfig

PARTS = ("loader", "step", "command")


def bench_peers(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="folder of JPEGs (default: synthetic faces)")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. model.backbone=resnet50")] = None,
    images: Annotated[int, typer.Option(help="number of images of the loader and of the whole command", min=2)] = 256,
    batch: Annotated[int, typer.Option(help="images per batch and step", min=2)] = 32,
    rounds: Annotated[int, typer.Option(help="number of rounds; each variant runs once per round", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="threads of arithmetic and of decoding", min=1)] = 1,
    parts: Annotated[str, typer.Option(help="parts with commas between them")] = ",".join(PARTS),
    out: Figures = None,
) -> None:
    """Measure this project, lightly and LightlyTrain in turn: same faces, method, network, size, batch, threads."""
    words = list(overrides or [])
    if directory is not None and "=" in str(directory):
        words, directory = [str(directory), *words], None
    chosen = parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UserError(f"--parts={unknown[0]}: unknown part. Fix: choose from {', '.join(PARTS)}.")
    if images < batch:
        raise UserError(f"--images={images}: less than one batch. Fix: raise it to at least {batch}.")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of this process, if torch is not imported yet, and of the commands
    from simfle.bench import peers, timing, views
    from simfle.config.schema import PretrainConfig, load
    from simfle.runtime.console import Console

    words = ["model.method=simclr", "model.backbone=resnet18", f"data.decode_threads={threads}", *words]
    config = load(PretrainConfig, None, words)
    peers.check(config)
    with tempfile.TemporaryDirectory(prefix="simfle-peers-") as name:
        folder = Path(name)
        data = views.read_images(directory, images)
        peers.write_images(data, folder / "images")
        found, device = _measure(config, data, folder, chosen, (batch, rounds, threads))
        commands = {}
        if "command" in chosen:
            commands = peers.measure_commands(folder / "images", config, words, batch, rounds, folder / "out")
    table = list(peers.rows(found.get("loader", {}), found.get("step", {}), commands, device))
    Console(highlight=False, soft_wrap=True).print(peers.markdown(table))
    result: dict[str, Any] = {"rows": dict(table), "batch": batch, "images": images, **timing.about(device)}
    result["ways"] = {f"{part} {way}": each.as_dict() for part, ways in found.items() for way, each in ways.items()}
    result["ways"] |= {f"command {way}": each.as_dict() for way, each in commands.items()}
    echo(f"load average {result['machine']['load']} on {result['machine']['cores']} cores")
    timing.save(result, out)


def _measure(
    config: "PretrainConfig", data: list[Any], folder: Path, chosen: list[str], numbers: tuple[int, int, int]
) -> "tuple[dict[str, Any], torch.device]":
    """Measure loader and step in this process; return the timings of each part, and the device."""
    import torch

    from simfle.bench import peers, timing
    from simfle.runtime.distributed import init_distributed

    (batch, rounds, threads), found = numbers, {}
    torch.set_num_threads(threads)
    with init_distributed(config.train) as world:
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        if "loader" in chosen:
            ways = peers.loader_variants(data, folder / "images", config, batch, threads, world.device)
            found["loader"] = timing.measure(ways, rounds, world.device)
        if "step" in chosen:
            found["step"] = timing.measure(peers.step_variants(config, batch, world), rounds, world.device)
        return found, world.device


main = command(bench_peers)
