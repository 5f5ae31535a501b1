"""`launchers/evaluate.py`: linear probe and kNN of backbones on labelled shards."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simfle.commands.app import command
from simfle.errors import UserError

if TYPE_CHECKING:
    from simfle.eval.summary import Results


def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="a YAML file; values that replace its own"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="evaluate this run's newest checkpoint, exported first; results go into it")
    ] = None,
    network: Annotated[str, typer.Option(help="of --run: online, target or both")] = "online",
    backbone: Annotated[list[Path] | None, typer.Option(help="a backbone.safetensors; may be repeated")] = None,
) -> None:
    """Measure backbones on labelled shards, each beside a randomly initialised one of the same shape.

    For example: launchers/evaluate.py configs/eval/linear.yaml --run runs/simfle shards=[shards/raf]
    """
    words = list(arguments or [])
    file = Path(words.pop(0)) if words and "=" not in words[0] else None
    if run is None and network != "online":
        raise UserError("--network: belongs to --run; name the files with --backbone instead")
    from simfle.config import load
    from simfle.eval.config import EvalConfig

    chosen = [str(path) for path in backbone or []]
    if run is not None:
        chosen += _exported(run, network)
        if not any(word.startswith("out=") for word in words):
            words.append(f"out={run / 'results.json'}")
    if chosen:
        words.append(f"backbones=[{','.join(chosen)}]")
    config = load(EvalConfig, file, words)

    from rich.console import Console

    from simfle.commands.logs import show_logs
    from simfle.eval.evaluate import evaluate as run_evaluation

    console = Console()
    show_logs()
    results = run_evaluation(config, ["python", *sys.argv])
    show(results, console)
    console.print(f"results: {config.out}", soft_wrap=True)


def _exported(run: Path, network: str) -> list[str]:
    if network not in ("online", "target", "both"):
        raise UserError(f"--network: {network!r} is unknown; there are: online, target, both")
    from simfle.eval.export import export_backbones

    written = export_backbones(run)
    return [str(path) for name, path in written.items() if network in (name, "both")]


def show(results: "Results", console: "object") -> None:
    """Print the summary as a table."""
    from rich.console import Console
    from rich.table import Table

    data = results.data
    title = f"{data['test']['samples']} test images, {len(data['classes'])} classes (chance {data['chance']:.1%})"
    table = Table(title=title)
    for name in ("backbone", "protocol", "seeds"):
        table.add_column(name)
    for name in ("balanced accuracy", "95 % interval", "accuracy", "macro F1"):
        table.add_column(name, justify="right")
    for row in results.summary:
        spread = f" ± {row['spread']:.1%}" if row["seeds"] > 1 else ""
        low, high = row["interval"]
        table.add_row(
            f"{row['kind']} {row['model']}",
            row["protocol"],
            str(row["seeds"]),
            f"{row['balanced_accuracy']:.1%}{spread}",
            f"{low:.1%} to {high:.1%}",
            f"{row['accuracy']:.1%}",
            f"{row['macro_f1']:.1%}",
        )
    if isinstance(console, Console):
        console.print(table)


main = command(evaluate)
