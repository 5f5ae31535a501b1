"""Subcommands of `simfle shards build` for known corpora: options, terms and published counts of each."""

import dataclasses
import inspect
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from shards.sources.registry import CorpusSpec, all_corpora
from simfle.commands.shards.build_options import SourceInput, typer_option
from simfle.commands.shards.build_source import source
from simfle.runtime.console import Console

if TYPE_CHECKING:
    from shards.build.builder import BuildReport
    from shards.build.spec import BuildSpec

Counts = dict[str, dict[str, int]]  # split -> label -> samples; the label "" stands for the split's total
ALL = "all"  # replaces the split names if fractions have moved people between splits


def add_known() -> None:
    """Add the subcommands."""
    for corpus in all_corpora():
        source(_command(corpus))


def _command(corpus: CorpusSpec) -> Any:
    """Return a function NAME(directory, *, options of the source) for build_source.source."""
    fields = [item for item in dataclasses.fields(corpus.source) if item.init][1:]  # type: ignore[arg-type]

    def command(directory: Path, **options: Any) -> SourceInput:
        entries = corpus.source(directory, **options)
        labels = tuple(getattr(entries, "labels", corpus.labels))
        return SourceInput(
            entries=entries,
            name=corpus.name,
            options=_describe(corpus, entries, options),
            labeled=bool(labels),
            roots=(directory,),
            notes=getattr(entries, "notes", list),
            terms=corpus.terms,
            labels=labels,
            about=partial(compare, corpus.published_counts(entries)),
            finish=show_count_differences,
            needs_crop=corpus.needs_crop(entries),
        )

    where = Annotated[Path, typer.Argument(metavar="DIR", help="folder of the corpus as downloaded")]
    parameters = [inspect.Parameter("directory", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=where)]
    for item in fields:
        option = typer_option(item.name, item.metadata.get("help", ""), item.default)
        parameters.append(
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=item.default,
                annotation=Annotated[item.type, option],
            )
        )
    command.__name__, command.__doc__ = corpus.name, corpus.title
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _describe(corpus: CorpusSpec, entries: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Describe the source for the manifest by its name, without local paths."""
    said = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
    about = {"kind": corpus.name, "name": entries.root.resolve().name}
    found = {"release": getattr(entries, "release", ""), "first_label": corpus.first_label_id}
    return about | {name: value for name, value in found.items() if value} | said


def compare(expected: Counts, request: "BuildSpec", written: Counter[tuple[str, str]]) -> dict[str, Any]:
    """Compare the written counts with the published ones, for the manifest."""
    if not expected:
        return {}
    moved = bool(request.rules.val_fraction or request.rules.test_fraction)
    rows = differences(expected, written, request.rules.labels, moved)
    return {"published": {"expected": expected, "differences": rows}}


def show_count_differences(request: "BuildSpec", report: "BuildReport") -> None:
    """Print the differences between the written and the published counts."""
    published = report.manifest.build.get("published")
    if not published:
        return
    rows = published["differences"]
    if rows:
        Console(highlight=False, soft_wrap=True).print(_table(rows))
        report.notes.append(
            f"{len(rows)} of the published counts differ from the written ones (table above); rejected images are "
            f"listed in {request.out}/rejected.jsonl; other differences are images missing from or added to your copy"
        )
    else:
        report.notes.append(f"sample counts equal the published ones: {_totals(published['expected'])}")


def differences(
    expected: Counts, written: Counter[tuple[str, str]], labels: tuple[str, ...], moved: bool
) -> list[dict[str, Any]]:
    """Return the counts that differ from the published ones.

    Only `labels` are compared (() = all). If people were `moved` between splits, only totals are compared.
    """
    wanted: Counter[tuple[str, str]] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    for split, counts in expected.items():
        for label, number in counts.items():
            if not label or not labels or label in labels:
                wanted[ALL if moved else split, label] += number
    for (split, label), number in written.items():
        found[ALL if moved else split, label] += number
        if label:
            found[ALL if moved else split, ""] += number
    return [
        {"split": split, "label": label, "expected": number, "found": found[split, label]}
        for (split, label), number in wanted.items()
        if found[split, label] != number
    ]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="counts that differ from the published ones", title_justify="left")
    table.add_column("split")
    table.add_column("label")
    for name in ("expected", "found", "difference"):
        table.add_column(name, justify="right")
    for row in rows:
        gap = row["found"] - row["expected"]
        table.add_row(row["split"], row["label"] or "(all)", str(row["expected"]), str(row["found"]), f"{gap:+d}")
    return table


def _totals(expected: Counts) -> str:
    return ", ".join(f"{split} {sum(counts.values())}" for split, counts in expected.items())
