"""`tools/bench_scaling.py`: what several processes cost each other."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import Figures, command
from simfle.errors import UserError


def bench_scaling(
    words: Annotated[list[str], typer.Argument(metavar="CONFIG [KEY=VALUE]...", help="as for simfle pretrain")],
    processes: Annotated[str, typer.Option(help="numbers of processes, with commas between them")] = "1,2,4",
    share: Annotated[int, typer.Option(help="samples of one process in a step", min=2)] = 12,
    steps: Annotated[int, typer.Option(help="steps of each measurement", min=4)] = 15,
    out: Figures = None,
) -> None:
    """Weak scaling on this machine: images/s of processes in one world, and of the same without communication.

    Both share the machine's cores alike, so the difference is what communication and waiting cost.
    """
    try:
        numbers = [int(word) for word in processes.split(",")]
    except ValueError:
        raise UserError(f"--processes {processes!r} is not numbers with commas between them, as 1,2,4") from None
    from dataclasses import asdict

    import torch
    from rich.table import Table

    from simfle.bench import rounds, scaling
    from simfle.console import Console

    with tempfile.TemporaryDirectory() as folder:
        found = [scaling.measure(words, number, share, steps, Path(folder)) for number in numbers]
    table = Table(title=f"{share} samples per process and step")
    for name in ("processes", "one world, images/s", "alone, images/s", "communication", "against one process"):
        table.add_column(name, justify="right")
    for each in found:
        ideal = each.processes * found[0].together / found[0].processes
        cells = f"{each.together:.1f}", f"{each.alone:.1f}", f"{each.communication:.0%}", f"{each.together / ideal:.0%}"
        table.add_row(str(each.processes), *cells)
    Console().print(table)
    result = {"scaling": [asdict(each) | {"communication": each.communication} for each in found]}
    rounds.save(result | {"machine": rounds.machine(torch.device("cpu"))}, out)


main = command(bench_scaling)
