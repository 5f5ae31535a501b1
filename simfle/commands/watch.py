"""`simfle watch`: show runs live, using only their files."""

import math
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simfle.commands.app import command, echo
from simfle.commands.runs import age
from simfle.errors import UserError
from simfle.runtime import run_files

if TYPE_CHECKING:
    from rich.console import RenderableType

    from simfle.runtime.console import Console
    from simfle.slurm.status import RunStatus

BARS = "▁▂▃▄▅▆▇█"
CURVE = 32  # characters of the loss curve
ENDED = (
    *("finished", "failed", "stopped", "killed", "gone"),
    *("cancelled", "timeout", "node_fail", "out_of_memory", "deadline", "boot_fail"),  # Slurm's
)
COLORS = {"running": "green", "finished": "cyan", "pending": "yellow", "failed": "red", "killed": "red"}


def watch(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="run folders, or folders of runs")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="print one screen and exit")] = False,
    interval: Annotated[float, typer.Option(help="seconds between updates", min=0.2)] = 2.0,
) -> None:
    """Show losses, images/s, data wait, GPU memory, last checkpoint, requeues and time left, until all runs have ended.

    Reads files only, so it works from a login node on a shared file system. If the output is a pipe, prints one line
    per new step.
    """
    from simfle.runtime.console import Console

    console = Console(highlight=False)
    runs = _find(folders or [Path("runs")])
    if once:
        console.print(screen(runs, console))
    elif console.is_terminal:
        _live(runs, console, interval)
    else:
        _lines(runs, interval)


def _find(places: list[Path]) -> list[Path]:
    from simfle.slurm.status import find_runs

    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: not a folder. Fix: name a run or a folder of runs.")
    found = [run for place in places for run in find_runs(place)]
    if not found:
        raise UserError(
            f"{', '.join(map(str, places))}: no folder with a config.yaml. Fix: name a run or a folder of runs."
        )
    return found


def _live(runs: list[Path], console: "Console", every: float) -> None:
    from rich.live import Live

    with Live(screen(runs, console), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not _ended(runs):
            time.sleep(every)
            live.update(screen(runs, console), refresh=True)


def _lines(runs: list[Path], every: float) -> None:
    """Print one line for each new step or state of a run, for logs and pipes."""
    from simfle.slurm.status import status

    before: dict[Path, tuple[str, int]] = {}
    while True:
        for run in runs:
            now = status(run)
            if before.get(run) != (now.state, now.step):
                before[run] = now.state, now.step
                echo(f"{run}: {now.state}; {'; '.join(f'{name} {text}' for name, text in facts(now))}")
                sys.stdout.flush()
        if _ended(runs):
            return
        time.sleep(every)


def _ended(runs: list[Path]) -> bool:
    from simfle.slurm.status import status

    return all(status(run).state in ENDED for run in runs)


def screen(runs: list[Path], console: "Console") -> "RenderableType":
    """Return a block for each run: state, progress, losses, hardware."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from simfle.slurm.status import status

    blocks: list[RenderableType] = []
    for run in runs:
        now = status(run)
        color = COLORS.get(now.state, "yellow")
        jobs = f"  job {now.jobs[-1]}" if now.jobs else ""
        blocks.append(Text.assemble((str(run), "bold"), f"{jobs}  ", (now.state, color), overflow="fold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        if now.steps and console.is_terminal:
            table.add_row("", ProgressBar(now.steps, now.step, width=CURVE))
        for name, text in facts(now):
            table.add_row(name, Text(text))  # a reason may contain [brackets], which rich would parse as markup
        curve = [line["losses"]["total"] for line in _tail(run) if "total" in line.get("losses", {})]
        if len(curve) > 1:
            table.add_row("loss curve", f"{sparkline(curve, CURVE)}  {curve[0]:.4g} to {curve[-1]:.4g}")
        blocks += [table, Text("")]
    return Group(*blocks)


def facts(now: "RunStatus") -> list[tuple[str, str]]:
    """Return names and texts of the known facts about a run."""
    found = [("step", str(now.step) + (f" of {now.steps} ({now.step / now.steps:.0%})" if now.steps else ""))]
    if now.state not in ENDED and (seconds := time_left(now)) is not None:
        found.append(("time left", age(seconds)))
    if now.losses:
        found.append(("losses", ", ".join(f"{name} {value:.4g}" for name, value in now.losses.items())))
    if now.images_per_second is not None:
        wait = f", data wait {now.data_wait:.0%}" if now.data_wait is not None else ""
        found.append(("speed", f"{now.images_per_second:.1f} images/s{wait}"))
    line = (_tail(now.run) or [{}])[-1]
    if features := line.get("features"):
        found.append(("features", ranks(features, run_files.baseline_name(now.run))))
    if monitor := line.get("monitor"):
        found.append(("monitor", ", ".join(f"{name} {value:.4g}" for name, value in monitor.items())))
    memory = line.get("gpu_memory")
    if memory:
        found.append(("GPU memory", f"{memory / 1e9:.1f} GB at most"))
    saved = f"step {now.checkpoint}, {age(now.checkpoint_age)} ago" if now.checkpoint_age is not None else "none yet"
    found.append(("checkpoint", saved))
    if now.jobs:
        found.append(("requeues", str(now.requeues)))
    if now.reason:
        found.append(("reason", now.reason))
    return found


def ranks(features: dict[str, float], baseline: str) -> str:
    """Describe the rank of the backbone's features and of its first weights; warn if it is too low.

    baseline: name of the first weights.
    """
    found = {name: f"{value:.1f}" for name, value in features.items()}
    text = f"rank {found.get('rank', '?')}, {baseline} {found.get('random_rank', '?')}"
    return text + (f"; features collapse, see {run_files.COLLAPSE_PAGE}" if run_files.is_collapsed(features) else "")


def time_left(now: "RunStatus") -> float | None:
    """Estimate the seconds left from the last metrics of this start, or return None if this is impossible."""
    lines = [line for line in _tail(now.run) if "time" in line and "step" in line]
    if len(lines) < 2 or not now.steps:
        return None
    gaps = [
        (later["time"] - earlier["time"]) / (later["step"] - earlier["step"])
        for earlier, later in pairwise(lines)
        if later["step"] > earlier["step"] and later["time"] > earlier["time"]
    ]
    if not gaps:
        return None
    # The median is not affected by a stop, a requeue or a checkpoint between two lines.
    return sorted(gaps)[len(gaps) // 2] * (now.steps - now.step)


def _tail(run: Path) -> "list[dict[str, Any]]":
    """Return the last metrics of a run, or nothing if they cannot be read (the run's state reports this)."""
    from simfle.slurm.status import tail

    with suppress(OSError):
        return tail(run)
    return []


def sparkline(values: list[float], width: int) -> str:
    """Draw a curve of at most `width` characters, each the mean of an equal part of the values.

    Non-finite values are skipped.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    most = max(map(abs, known)) or 1.0
    known = [value / most for value in known]  # prevents overflow of sums and differences
    count = min(width, len(known))
    shares = [known[place * len(known) // count : (place + 1) * len(known) // count] for place in range(count)]
    means = [sum(share) / len(share) for share in shares]
    low, high = min(means), max(means)
    heights = [(mean - low) / (high - low) if high > low else 0.0 for mean in means]
    return "".join(BARS[round(height * (len(BARS) - 1))] for height in heights)


main = command(watch)
