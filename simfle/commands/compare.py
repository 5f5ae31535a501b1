"""`simfle compare`: compare methods, averaging the runs (pretraining seeds) of each method."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simfle.commands.app import command, echo
from simfle.errors import UserError

if TYPE_CHECKING:
    from simfle.eval.analysis.results import Result

HEAD = ("benchmark", "protocol", "metric", "method", "runs", "score", "95 % interval", "minus {against}", "p")


def compare(
    methods: Annotated[
        list[str],
        typer.Argument(metavar="NAME=FOLDER[,FOLDER...]...", help="results of a method; * matches any text"),
    ],
    against: Annotated[str, typer.Option(help="baseline method of the differences (default: the first)")] = "",
    resamples: Annotated[int, typer.Option(help="number of bootstrap and permutation resamples", min=1)] = 1000,
) -> None:
    """Print a Markdown table of methods: mean over runs, interval over people, paired difference to a baseline.

    Each folder is one run; its random-initialization baseline is ignored.

    For example: simfle compare "simfle=runs/simfle-*/eval" "byol=runs/byol-*/eval"
    """
    from simfle.eval.analysis.compare import compare as paired
    from simfle.eval.analysis.summary import grouped, rows

    named: dict[str, list[str]] = {}
    for word in methods:
        name, _, places = word.partition("=")
        if not name or not places:
            raise UserError(f"{word}: not NAME=FOLDER. Fix: write a name and the folder of an evaluation.")
        named.setdefault(name, []).extend(places.split(","))
    found = {name: _results(name, places) for name, places in named.items()}
    against = against or next(iter(found))
    if against not in found:
        raise UserError(f"--against={against}: unknown method. Fix: choose one of {', '.join(found)}.")
    results = [result for each in found.values() for result in each]
    groups = grouped(results)
    echo(_line(tuple(word.format(against=against) for word in HEAD)))
    echo(_line(["---"] * len(HEAD)))
    for row in sorted(rows(results, resamples), key=lambda row: (row.benchmark, row.protocol)):
        own, other = (groups.get((row.benchmark, row.protocol, name)) for name in (row.id, against))
        difference = chance = ""
        if own and other and row.id != against:
            pair = paired(own, other, resamples, row.metric)
            low, high = pair.interval
            difference, chance = f"{pair.difference:+.3f} ({low:+.3f} to {high:+.3f})", f"{pair.p:.3f}"
        low, high = row.interval
        score = f"{row.score:.3f}" + (f" ± {row.spread:.3f}" if row.seeds > 1 else "")
        place = row.benchmark, row.protocol, row.metric, row.id, str(row.seeds)
        echo(_line((*place, score, f"{low:.3f} to {high:.3f}", difference, chance)))
    echo("\n± is the standard deviation over runs; intervals and p are over the people in the test images.")


def _results(name: str, places: list[str]) -> "list[Result]":
    """Return the results below the folders, one backbone per folder, under the method's name."""
    from simfle.eval.analysis.results import read_results

    # If folders are nested, the inner one is read first, and each result is read once.
    folders = {found for place in places for found in _folders(place)}
    results: list[Result] = []
    seen: set[Path | None] = set()
    for folder in sorted(folders, key=lambda each: (-len(each.parts), each)):
        new = [result for result in read_results([folder]) if result.path not in seen]
        seen.update(result.path for result in new)
        results += _of_one_backbone(name, folder, new)
    if not results:
        raise UserError(f"{name}: no results in {', '.join(places)}. Fix: run simfle evaluate first.")
    return [replace(result, backbone={**result.backbone, "id": name}) for result in results]


def _of_one_backbone(name: str, folder: Path, results: "list[Result]") -> "list[Result]":
    """Drop the random-initialization baselines. Raises UserError if several backbones remain."""
    own = [result for result in results if result.backbone["kind"] != "random"] or results
    backbones = sorted({str(result.path.parents[2]) for result in own if result.path})  # OUT/<id>/.../seed-<n>.json
    if len(backbones) > 1:
        raise UserError(
            f"{name}: {folder} holds results of {len(backbones)} backbones; each folder must be one run. "
            f"Fix: name the folders of single runs: {', '.join(backbones)}."
        )
    return own


def _folders(pattern: str) -> list[Path]:
    here = Path(pattern)
    start = Path(here.anchor or ".")
    return sorted(found for found in start.glob(str(here.relative_to(here.anchor))) if found.is_dir())


def _line(cells: "list[str] | tuple[str, ...]") -> str:
    return f"| {' | '.join(cells)} |"


main = command(compare)
