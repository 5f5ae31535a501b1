"""`simfle bench loader`: speed of making the three views of an image, compared with the usual PIL pipeline."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import Figures, command, echo
from simfle.errors import UserError


def bench_loader(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="folder of JPEGs (default: synthetic faces)")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. views.size=96")] = None,
    images: Annotated[int, typer.Option(help="images per repetition")] = 128,
    rounds: Annotated[int, typer.Option(help="number of rounds; each variant runs once per round")] = 5,
    threads: Annotated[list[int] | None, typer.Option(help="thread counts to try (default: 1 and 2)")] = None,
    out: Figures = None,
) -> None:
    """Measure images per second, three views each: medians over rounds; all variants alternate on the same images."""
    arguments = list(overrides or [])
    if directory is not None and "=" in str(directory):
        arguments, directory = [str(directory), *arguments], None
    counts = threads or [1, 2]
    if images < 1 or min(counts) < 1:
        raise UserError("--images and --threads must be at least 1. Fix: raise them.")
    from simfle.config.schema import PretrainConfig, load

    config = load(PretrainConfig, None, arguments)
    import torch

    from simfle.bench import timing, views
    from simfle.plan.hardware import device_kind

    device = torch.device("cuda" if config.train.device != "cpu" and torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # torchvision's blur would use all cores, but a loader worker has one thread
    try:
        data = views.read_images(directory, images)
        found = timing.measure(views.variants(data, config.views, counts, device), rounds, device)
    finally:
        torch.set_num_threads(before)
    known: dict[str, float] = {}
    if "opencv 1" in found:
        known["loader.core"] = found["opencv 1"].rate
    if "dali gpu" in found:
        kind = device_kind(torch.cuda.get_device_name(device))
        known |= {f"{kind}.dali": found["dali gpu"].rate} if kind else {}
    size = sum(image.size for image in data) / len(data)
    result = timing.report(found, device, constants=known, image_bytes=size, images=len(data))
    timing.show(
        f"three views of {len(data)} images of {size / 1000:.1f} kB", found, "images per second", views.REFERENCE
    )
    echo(f"load average {result['machine']['load']} on {result['machine']['cores']} cores")
    timing.save(result, out)


main = command(bench_loader)
