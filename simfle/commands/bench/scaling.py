"""`simfle bench scaling`: cost of communication between processes."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import Figures, command
from simfle.errors import UserError


def bench_scaling(
    words: Annotated[list[str], typer.Argument(metavar="CONFIG [KEY=VALUE]...", help="as for simfle pretrain")],
    processes: Annotated[str, typer.Option(help="numbers of processes, comma-separated")] = "1,2,4",
    batch_per_process: Annotated[int, typer.Option(help="samples per process and step", min=2)] = 12,
    steps: Annotated[int, typer.Option(help="steps per measurement", min=4)] = 15,
    out: Figures = None,
) -> None:
    """Measure weak scaling on this machine: images/s of N processes in one process group and of N independent ones.

    Both share the machine's cores equally, so the difference is the cost of communication and waiting.
    """
    try:
        numbers = [int(word) for word in processes.split(",")]
    except ValueError:
        raise UserError(f"--processes={processes!r}: not a list of numbers. Fix: write them as 1,2,4.") from None
    from dataclasses import asdict

    import torch
    from rich.table import Table

    from simfle.bench import scaling, timing
    from simfle.runtime.console import Console

    with tempfile.TemporaryDirectory() as folder:
        found = [scaling.measure(words, number, batch_per_process, steps, Path(folder)) for number in numbers]
    table = Table(title=f"{batch_per_process} samples per process and step")
    for name in ("processes", "one group, images/s", "independent, images/s", "communication", "vs. one process"):
        table.add_column(name, justify="right")
    for each in found:
        ideal = each.processes * found[0].together / found[0].processes
        cells = f"{each.together:.1f}", f"{each.alone:.1f}", f"{each.communication:.0%}", f"{each.together / ideal:.0%}"
        table.add_row(str(each.processes), *cells)
    Console().print(table)
    result = {"scaling": [asdict(each) | {"communication": each.communication} for each in found]}
    timing.save(result | {"machine": timing.machine(torch.device("cpu"))}, out)


main = command(bench_scaling)
