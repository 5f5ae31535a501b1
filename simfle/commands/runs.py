"""`simfle runs`: list runs and their progress."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.redact import to_json
from simfle.commands.app import command, echo
from simfle.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from simfle.slurm.status import RunStatus


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="run folders, or folders of runs (default: runs)")
    ] = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="print one JSON object per run instead of a table")
    ] = False,
) -> None:
    """List runs: jobs, state, step, images/s, last checkpoint, requeues. Works with and without Slurm accounting."""
    import dataclasses

    from simfle.runtime.console import Console
    from simfle.slurm.status import find_runs, status

    places = folders or [Path("runs")]
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: not a folder. Fix: name a run or a folder of runs.")
    found = [status(run) for place in places for run in find_runs(place)]
    if not found:
        raise UserError(
            f"{', '.join(map(str, places))}: no folder with a config.yaml. Fix: name a run or a folder of runs."
        )
    if json_lines:
        for each in found:
            echo(to_json(dataclasses.asdict(each) | {"run": str(each.run)}))
        return
    console = Console()
    console.print(table(found))
    for each in found:
        if each.reason:
            console.print(f"{each.run}: {each.reason}", soft_wrap=True, highlight=False, markup=False)


def table(found: "list[RunStatus]") -> "Table":
    """Return a table with one row per run."""
    from rich.table import Table
    from rich.text import Text

    from shards.printable import printable

    made = Table()
    for name in ("run", "jobs", "state"):
        made.add_column(name, overflow="fold")
    for name in ("step", "images/s", "checkpoint", "requeues"):
        made.add_column(name, justify="right")
    for each in found:
        made.add_row(
            Text(printable(str(each.run))),  # a name may contain [brackets], which rich would parse as markup
            " ".join(each.jobs) or "-",
            each.state,
            f"{each.step}/{each.steps}" if each.steps else str(each.step),
            f"{each.images_per_second:.0f}" if each.images_per_second else "-",
            f"{each.checkpoint} ({age(each.checkpoint_age)} ago)" if each.checkpoint_age is not None else "none",
            str(each.requeues),
        )
    return made


def age(seconds: float) -> str:
    """Format a number of seconds: 90 -> '2 min'."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


main = command(runs)
