"""`simfle compare`: methods side by side, the runs of one method (its pretraining seeds) taken together."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simfle.commands.app import command, echo
from simfle.errors import UserError

if TYPE_CHECKING:
    from simfle.eval.results import Result

HEAD = ("benchmark", "protocol", "metric", "method", "runs", "score", "95 % interval", "less {against}", "p")


def compare(
    methods: Annotated[
        list[str],
        typer.Argument(metavar="NAME=FOLDER[,FOLDER...]...", help="results of a method; * is any text"),
    ],
    against: Annotated[str, typer.Option(help="the method that differences are taken to; empty: the first")] = "",
    resamples: Annotated[int, typer.Option(help="resamples of intervals and permutation tests", min=1)] = 1000,
) -> None:
    """A Markdown table of methods: mean over their runs, interval over people, paired difference to one of them.

    Each folder stands for one run: random backbones that were evaluated beside its own are left out.

    For example: simfle compare "simfle=runs/simfle-*/eval" "byol=runs/byol-*/eval"
    """
    from simfle.eval.compare import compare as paired
    from simfle.eval.summary import grouped, rows

    named: dict[str, list[str]] = {}
    for word in methods:
        name, _, places = word.partition("=")
        if not name or not places:
            raise UserError(f"{word}: give NAME=FOLDER, the folder of an evaluation")
        named.setdefault(name, []).extend(places.split(","))
    found = {name: _results(name, places) for name, places in named.items()}
    against = against or next(iter(found))
    if against not in found:
        raise UserError(f"--against {against}: no such method; there are {', '.join(found)}")
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
    echo("\n± is the standard deviation over runs; intervals and p are over the people of the test images.")


def _results(name: str, places: list[str]) -> "list[Result]":
    """The results below some folders, of one backbone in each, under the method's name."""
    from simfle.eval.results import read_results

    # A folder that another one holds is read once, as the narrower of the two.
    folders = {found for place in places for found in _folders(place)}
    results: list[Result] = []
    seen: set[Path | None] = set()
    for folder in sorted(folders, key=lambda each: (-len(each.parts), each)):
        new = [result for result in read_results([folder]) if result.path not in seen]
        seen.update(result.path for result in new)
        results += _of_one_backbone(name, folder, new)
    if not results:
        raise UserError(f"{name}: no results in {', '.join(places)}; make them with simfle evaluate")
    return [replace(result, backbone={**result.backbone, "id": name}) for result in results]


def _of_one_backbone(name: str, folder: Path, results: "list[Result]") -> "list[Result]":
    """Without the random ones that an evaluation measures beside its own. Raises UserError: several stay."""
    own = [result for result in results if result.backbone["kind"] != "random"] or results
    backbones = sorted({str(result.path.parents[2]) for result in own if result.path})  # OUT/<id>/.../seed-<n>.json
    if len(backbones) > 1:
        raise UserError(
            f"{name}: {folder} holds results of {len(backbones)} backbones, and one folder stands for one run; "
            f"name those of one each: {', '.join(backbones)}"
        )
    return own


def _folders(pattern: str) -> list[Path]:
    here = Path(pattern)
    start = Path(here.anchor or ".")
    return sorted(found for found in start.glob(str(here.relative_to(here.anchor))) if found.is_dir())


def _line(cells: "list[str] | tuple[str, ...]") -> str:
    return f"| {' | '.join(cells)} |"


main = command(compare)
