"""`simfle predict`: expressions of images with probabilities, by a probe that `simfle evaluate` fitted."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simfle.commands.app import command, echo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def predict(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="image, folder of images, or folder of shards")],
    backbone: Annotated[
        str, typer.Argument(metavar="BACKBONE", help="run folder, backbone.safetensors, or a name such as timm:NAME")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT]", help="file to write: .csv, .parquet or .npz (default: print)"),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(help="benchmark in RUN/eval, or a probe-SEED.json (default: the only benchmark in RUN/eval)"),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="split of the shards (repeatable; default: all)")] = None,
    batch: Annotated[int, typer.Option(help="images per forward pass", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or one GPU such as cuda:1")] = "auto",
) -> None:
    """Predict the expression of images of faces, with calibrated probabilities.

    simfle evaluate CONFIG --run RUN ... fits a probe (protocol linear_fast) on labeled shards; then, for example:
    simfle predict path/to/faces runs/mine expressions.csv

    Limits, also printed with each prediction: the classes are annotators' impressions of photos, not feelings. Any
    image, also one without a face, gets one of them. The accuracy holds for images like those of the probe's test
    split. Predictions are not for decisions about persons; docs/data-protection.md has more.
    """
    from simfle.api.embedding import csv_text
    from simfle.api.prediction import describe_probe
    from simfle.api.prediction import predict as run
    from simfle.commands.logs import show_logs

    show_logs()
    for line in describe_probe(backbone, probe):
        echo(line, err=True)
    found = run(data, backbone, out, probe=probe, splits=split, batch=batch, device=device)
    if out is not None:
        echo(f"{out}: {len(found['path'])} images; {', '.join(found)}")
    elif data.is_file():
        _print_table(found)
    else:
        for line in csv_text(found).rstrip("\n").split("\n"):
            echo(line)


def _print_table(found: "dict[str, NDArray[np.str_ | np.float64]]") -> None:
    """Print the classes of one image, the most probable first."""
    from rich.table import Table

    from simfle.runtime.console import Console

    table = Table("expression", "probability")
    chances: dict[str, Any] = {name[2:]: values[0] for name, values in found.items() if name.startswith("p_")}
    for name in sorted(chances, key=chances.__getitem__, reverse=True):
        table.add_row(name, f"{chances[name]:.3f}")
    Console().print(table)


main = command(predict)
