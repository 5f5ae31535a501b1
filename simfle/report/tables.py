"""Results as tables: rows for the page, and the same numbers as Markdown, CSV and JSON."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from shards.redact import to_json
from simfle.eval.analysis.compare import Comparison
from simfle.eval.analysis.metrics import LOWER_IS_BETTER
from simfle.eval.analysis.results import CLASSES, Result
from simfle.eval.analysis.summary import SummaryRow, comparisons, disambiguate_names, grouped, rows
from simfle.report.charts import SHARES, readable
from simfle.report.load_runs import RunRecord

Place = tuple[str, str]  # benchmark, protocol
HASH = re.compile(r"-[0-9a-f]{4,8}$")  # at the end of a backbone's id
ORDER = ("linear", "linear_fast", "knn", "finetune", "scratch")


@dataclass(frozen=True)
class Tables:
    """Tables of results. rows: one per backbone, benchmark and protocol; names: backbones by id; pairs: paired
    tests."""

    results: list[Result]
    rows: list[SummaryRow]
    names: dict[str, str]
    pairs: list[Comparison]

    @property
    def places(self) -> list[Place]:
        """Return the columns of the table of backbones by benchmarks."""
        return list(dict.fromkeys((row.benchmark, row.protocol) for row in self.rows))

    def cell(self, backbone: str, place: Place) -> SummaryRow | None:
        """Return the row of a backbone in one column."""
        return next((row for row in self.rows if row.id == backbone and (row.benchmark, row.protocol) == place), None)

    def best(self, place: Place) -> str:
        """Return the backbone with the best score in one column."""
        found = [row for row in self.rows if (row.benchmark, row.protocol) == place]
        return min(found, key=lambda row: row.score if row.metric in LOWER_IS_BETTER else -row.score).id

    def first(self, place: Place) -> Result:
        """Return any row of one column, for facts that all its rows share."""
        return next(result for result in self.results if (result.benchmark, result.protocol) == place)


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix summed over seeds. table: [K][K], rows are true classes. recall: [K], None for a class without
    samples."""

    title: str
    classes: list[str]
    table: list[list[int]]
    recall: list[float | None]

    @property
    def shares(self) -> list[list[float]]:
        """Return each row in percent of its sum."""
        return [[100 * count / max(sum(row), 1) for count in row] for row in self.table]


def tables(results: Sequence[Result], resamples: int = 1000) -> Tables:
    """Return all tables of a report."""
    ordered = sorted(disambiguate_names(results), key=_rank)
    found = rows(ordered, resamples)
    return Tables(ordered, found, _names(found), comparisons(ordered, resamples))


def _rank(result: Result) -> tuple[bool, int]:
    """Sort rows: random backbones last; protocols in the order of ORDER, then all others."""
    name = result.protocol.partition("@")[0]
    return result.backbone["kind"] == "random", ORDER.index(name) if name in ORDER else len(ORDER)


def _names(found: Sequence[SummaryRow]) -> dict[str, str]:
    """Name each backbone by its run and network; keep more of its id where names would be equal.

    RUN-online-0123abcd -> RUN, trained; random-resnet18-64px-ab12 -> random weights.
    """
    kinds = {row.id: row.kind for row in found}
    names = {id: _short_name(id, kind) for id, kind in kinds.items()}
    values = list(names.values())
    names = {id: text if values.count(text) == 1 else _longer_name(id, kinds[id], text) for id, text in names.items()}
    values = list(names.values())
    return {id: text if values.count(text) == 1 else id for id, text in names.items()}


def _short_name(id: str, kind: str) -> str:
    if kind == "random":
        return "random weights"
    text = HASH.sub("", id)
    ending = {"online": ", trained", "target": ", trained (EMA target)"}.get(kind, "")
    return f"{text.removesuffix(f'-{kind}')}{ending}" if text.endswith(f"-{kind}") else text


def _longer_name(id: str, kind: str, short: str) -> str:
    """Add the shape of random weights, or the hash of trained ones."""
    if kind == "random":
        return f"{short} ({HASH.sub('', id).removeprefix('random-')})"
    found = HASH.search(id)
    return f"{short} ({found[0][1:]})" if found else id


def confusions(shown: Tables) -> list[Confusion]:
    """Return one matrix per row of classes, in the order of the rows."""
    found = []
    for (benchmark, protocol, backbone), seeds in grouped(shown.results).items():
        if seeds[0].kind != CLASSES:
            continue
        table = np.sum([result.metrics["confusion"] for result in seeds], axis=0)
        recall = [row[place] / row.sum() if row.sum() else None for place, row in enumerate(table)]
        title = f"{shown.names[backbone]}, {benchmark}, {readable(protocol)}"
        found.append(Confusion(title, seeds[0].classes, table.tolist(), recall))
    return found


def show(value: float, metric: str) -> str:
    """Format 0.523 as 52.3 % for fractions; other metrics with three decimals."""
    return f"{100 * value:.1f} %" if metric in SHARES else f"{value:.3f}"


def show_interval(row: SummaryRow) -> str:
    """Format an interval as 52.3 % to 55.1 %."""
    return f"{show(row.interval[0], row.metric)} to {show(row.interval[1], row.metric)}"


def markdown(runs: Sequence[RunRecord], shown: Tables, title: str, commands: Sequence[str]) -> str:
    """Return the page without its images as Markdown."""
    lines = [
        f"# {_text(title)}",
        "",
        "| run | method | backbone | steps | batch | seed | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        speed = run.typical("images_per_second")
        model, train = run.config["model"], run.config["train"]
        cells = [run.name, model["method"], model["backbone"], run.last["step"], train["global_batch"], train["seed"]]
        lines.append(_line([*cells, f"{speed:.0f}" if speed else "-"]))
    if shown.rows:
        header = ["backbone", "benchmark", "protocol", "metric", "score", "95 % interval", "spread over seeds", "seeds"]
        lines += ["", "## Results", "", _line(header), _line(["---"] * len(header))]
        for row in shown.rows:
            spread = show(row.spread, row.metric) if row.seeds > 1 else "-"
            cells = [shown.names[row.id], row.benchmark, row.protocol, readable(row.metric)]
            lines.append(_line([*cells, show(row.score, row.metric), show_interval(row), spread, row.seeds]))
    if shown.pairs:
        header = ["first", "second", "benchmark", "protocol", "difference", "95 % interval", "p (permutation)"]
        lines += ["", "## Differences", "", _line(header), _line(["---"] * len(header))]
        for pair in shown.pairs:
            low, high = (show(value, pair.metric) for value in pair.interval)
            cells = [shown.names[pair.first], shown.names[pair.second], pair.benchmark, pair.protocol]
            lines.append(_line([*cells, show(pair.difference, pair.metric), f"{low} to {high}", f"{pair.p:.3f}"]))
    return "\n".join([*lines, "", "## Commands", "", *(f"    {command}" for command in commands), ""])


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in cells) + " |"


def _text(cell: Any) -> str:
    """Put text on one line and escape HTML, which Markdown would pass through."""
    return escape(" ".join(str(cell).split("\n")), quote=False)


def csv_text(shown: Tables) -> str:
    """Return one CSV line per row with raw numbers (fractions of 1)."""
    names = [
        "backbone",
        "id",
        "kind",
        "model",
        "benchmark",
        "protocol",
        "metric",
        "score",
        "low",
        "high",
        "spread",
        "seeds",
    ]
    names += ["samples", "best_on_test"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in shown.rows:
        low, high = row.interval
        cells = {**asdict(row), "backbone": shown.names[row.id], "low": low, "high": high}
        writer.writerow({name: _no_formula(cell) for name, cell in cells.items()})
    return buffer.getvalue()


def _no_formula(cell: Any) -> Any:
    """Return a CSV cell; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def json_text(runs: Sequence[RunRecord], shown: Tables, commands: Sequence[str]) -> str:
    """Return runs with their last losses and configurations, rows, and paired tests as JSON."""
    about = [
        {
            "name": run.name,
            "folder": str(run.folder),
            "step": run.last["step"],
            "losses": run.last["losses"],
            "images_per_second": run.typical("images_per_second"),
            "data_wait": run.typical("data_wait"),
            "config": run.config,
            "versions": run.versions,
        }
        for run in runs
    ]
    content = {
        "runs": about,
        "results": [{**asdict(row), "backbone": shown.names[row.id]} for row in shown.rows],
        "comparisons": [asdict(pair) for pair in shown.pairs],
        "commands": list(commands),
    }
    return to_json(content, indent=1) + "\n"
