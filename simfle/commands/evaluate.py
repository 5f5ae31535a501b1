"""`simfle evaluate`: evaluate backbones on benchmarks with several protocols and seeds."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command
from simfle.commands.next_steps import refuse_folder, show_next
from simfle.config.overrides import format_override, shell_line
from simfle.errors import UserError


def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="YAML file, and values that override it"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="export and evaluate this run's newest checkpoint; results go to RUN/eval")
    ] = None,
    encoder: Annotated[str, typer.Option(help="--run: online, target or both")] = "online",
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="backbone.safetensors, run folder, or a name such as timm:NAME, besides those in CONFIG (repeatable)"
        ),
    ] = None,
) -> None:
    """Evaluate backbones, each with a randomly initialized baseline of its architecture. Existing results are skipped.

    For example: simfle evaluate configs/eval/quick.yaml --run runs/simfle benchmarks=[rafdb=shards/rafdb]

    On several GPUs: torchrun --nproc_per_node 4 -m -- simfle evaluate ...
    """
    words = list(arguments or [])
    file = Path(words.pop(0)) if words and "=" not in words[0] else None
    if file is not None:
        refuse_folder(file, "evaluate")
    if run is None and encoder != "online":
        raise UserError(f"--encoder={encoder}: only valid with --run. Fix: name the files with --backbone.")
    from simfle.config.schema import load
    from simfle.eval.config import EvalConfig

    chosen = list(backbone or [])
    if run is not None:
        chosen += _exported(run, encoder)
        words = [format_override("out", run / "eval"), *words]
    config = load(EvalConfig, file, words)
    config = replace(config, backbones=[_of_run(place) for place in (*chosen, *config.backbones)])

    from simfle.commands.logs import show_logs
    from simfle.eval.evaluator import evaluate as run_evaluation
    from simfle.runtime.console import Console

    # In a file or a pipe, do not wrap the table.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    show_logs()
    summary = run_evaluation(config, ["python", *sys.argv])
    console.print(summary)
    console.print(f"results: {config.out}", soft_wrap=True, highlight=False, markup=False)
    if run is not None:
        show_next([shell_line("simfle", "report", run)])


def _of_run(place: str) -> str:
    """Return the backbone of a run folder, exported if needed; any other place unchanged."""
    from simfle.export.timm import exported_backbone, is_run

    return str(exported_backbone(Path(place))) if is_run(Path(place)) else place


def _exported(run: Path, encoder: str) -> list[str]:
    if encoder not in ("online", "target", "both"):
        raise UserError(f"--encoder={encoder}: unknown. Fix: choose online, target or both.")
    from simfle.export.timm import export_backbones

    written = export_backbones(run)
    return [str(path) for name, path in written.items() if encoder in (name, "both")]


main = command(evaluate)
