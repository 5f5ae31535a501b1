"""`simfle bench startup`: response time of commands, and time of a run to its first step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import Figures, command, echo


def bench_startup(
    only: Annotated[
        list[str] | None, typer.Option(help="measure --help of these subcommands only, e.g. 'bench step'")
    ] = None,
    rounds: Annotated[int, typer.Option(help="number of rounds; each command runs once per round", min=1)] = 5,
    out: Figures = None,
) -> None:
    """Measure seconds of --help of every subcommand, of configuration checks, and of a small run to its first step."""
    import tempfile

    import torch

    from simfle.bench import runs, startup, timing

    names = [name.split() for name in only or []] or list(subcommands())
    with tempfile.TemporaryDirectory(prefix="simfle-bench-") as folder:
        faces = runs.drawn(Path(folder) / "faces", people=8)
        found = startup.measure(names, faces, Path(folder), rounds)
    result = {"ways": {name: each.as_dict() for name, each in found.items()}, **timing.about(torch.device("cpu"))}
    runs.show("start-up", found)
    late = [name for name, each in found.items() if each.median > each.target_seconds]
    echo(f"slower than the target: {', '.join(late) or 'none'}")
    echo(f"load average {result['machine']['load']} on {result['machine']['cores']} cores")
    timing.save(result, out)


def subcommands() -> Iterator[list[str]]:
    """Return all subcommands of `simfle`, each as a list of words."""
    from simfle.commands.main import COMMANDS, CommandEntry, CommandGroup

    def walk(table: "dict[str, CommandEntry | CommandGroup]", before: list[str]) -> Iterator[list[str]]:
        for name, entry in table.items():
            if isinstance(entry, CommandGroup):
                yield from walk(entry.entries, [*before, name])
            else:
                yield [*before, name]

    yield from walk(COMMANDS, [])


main = command(bench_startup)
