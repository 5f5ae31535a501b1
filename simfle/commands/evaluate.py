"""`launchers/evaluate.py`: backbones on benchmarks, by protocols, with seeds."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simfle.commands.app import command
from simfle.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from simfle.eval.summary import Summary


def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="a YAML file; values that replace its own"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="evaluate this run's newest checkpoint, exported first; results go into it")
    ] = None,
    network: Annotated[str, typer.Option(help="of --run: online, target or both")] = "online",
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="a backbone.safetensors, or timm:NAME and the like, beside those of CONFIG; repeatable"),
    ] = None,
) -> None:
    """Measure backbones, each beside a randomly initialised one of the same shape. What is done is skipped.

    For example: simfle evaluate configs/eval/quick.yaml --run runs/simfle benchmarks=[rafdb=shards/rafdb]

    On several GPUs: torchrun --nproc_per_node 4 -m -- simfle evaluate ...
    """
    words = list(arguments or [])
    file = Path(words.pop(0)) if words and "=" not in words[0] else None
    if run is None and network != "online":
        raise UserError("--network: belongs to --run; name the files with --backbone instead")
    from simfle.config import load
    from simfle.eval.config import EvalConfig

    chosen = list(backbone or [])
    if run is not None:
        chosen += _exported(run, network)
        words = [f"out={run / 'eval'}", *words]
    config = load(EvalConfig, file, words)
    config = replace(config, backbones=[*chosen, *config.backbones])

    from rich.console import Console

    from simfle.commands.logs import show_logs
    from simfle.eval.evaluate import evaluate as run_evaluation

    # Into a file or a pipe a table is written as wide as it is.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    show_logs()
    summary = run_evaluation(config, ["python", *sys.argv])
    show(summary, console)
    console.print(f"results: {config.out}", soft_wrap=True)


def _exported(run: Path, network: str) -> list[str]:
    if network not in ("online", "target", "both"):
        raise UserError(f"--network: {network!r} is unknown; there are: online, target, both")
    from simfle.eval.export import export_backbones

    written = export_backbones(run)
    return [str(path) for name, path in written.items() if network in (name, "both")]


def show(summary: "Summary", console: "Console") -> None:
    """Print a table of each benchmark, and one of the paired tests."""
    from rich.table import Table

    for benchmark in dict.fromkeys(row.benchmark for row in summary.table):
        rows = [row for row in summary.table if row.benchmark == benchmark]
        table = Table(title=f"{benchmark}: chosen on validation, measured on {rows[0].samples} test images")
        for name in ("protocol", "metric", "backbone", "seeds"):
            table.add_column(name)
        for name in ("score", "95 % interval", "best on test*"):
            table.add_column(name, justify="right")
        for row in sorted(rows, key=lambda row: row.protocol):
            spread = f" ± {row.spread:.3f}" if row.seeds > 1 else ""
            low, high = row.interval
            best = "" if row.best_on_test is None else f"{row.best_on_test:.3f}"
            numbers = f"{row.score:.3f}{spread}", f"{low:.3f} to {high:.3f}", best
            table.add_row(row.protocol, row.metric, row.id, str(row.seeds), *numbers)
        console.print(table)
    console.print("* the papers' habit: the best epoch or candidate on the test images. For comparison only.")
    if summary.comparisons:
        pairs = Table(title="differences on the same test images (paired, by person where known)")
        for name in ("benchmark", "protocol", "first", "less second"):
            pairs.add_column(name)
        for name in ("difference", "95 % interval", "p"):
            pairs.add_column(name, justify="right")
        for found in summary.comparisons:
            low, high = found.interval
            numbers = f"{found.difference:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{found.p:.3f}"
            pairs.add_row(found.benchmark, found.protocol, found.first, found.second, *numbers)
        console.print(pairs)


main = command(evaluate)
