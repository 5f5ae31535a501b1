"""`simfle doctor`: check this machine or a cluster, and advise how to fix problems."""

import json
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.redact import to_json
from simfle.commands.app import command, echo

if TYPE_CHECKING:
    from simfle.doctor.findings import Finding
    from simfle.slurm.config import ClusterConfig

STYLES = {"ok": "green", "note": "yellow", "broken": "bold red"}


def doctor(  # noqa: PLR0913, PLR0917 - one argument per option
    folder: Annotated[Path, typer.Option(help="folder for runs; its disk speed is measured")] = Path("runs"),
    nodes: Annotated[int, typer.Option(help="number of nodes of a Slurm cluster to check with a short job", min=0)] = 0,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="--nodes: processes per node, one per GPU (0 = CPU nodes)")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="--nodes: sbatch --partition")] = None,
    account: Annotated[str | None, typer.Option(help="--nodes: sbatch --account")] = None,
    cluster: Annotated[Path | None, typer.Option(help="--nodes: YAML such as configs/cluster/default.yaml")] = None,
    network: Annotated[str, typer.Option(help="--nodes: network of each node as in simfle plan: 400gb, 8x400gb")] = "",
    wait: Annotated[float, typer.Option(help="--nodes: maximum seconds to wait for the job")] = 600.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="print findings as JSON, with the nodes' measurements")
    ] = False,
) -> None:
    """Check Python, GPU, libraries, limits, disk and Slurm. Exit code 1 if there is an error.

    With --nodes, also measure bandwidth, read rates and versions on a cluster's nodes, and write them to a file for
    `simfle plan --constants`.
    """
    from simfle.doctor import nodes as together
    from simfle.doctor.checks import run_checks

    measured, job, number = None, Path(), ""
    if nodes:  # submitted first: the job waits in the queue while this machine is checked
        options = {"nodes": nodes, "gpus_per_node": gpus_per_node, "partition": partition, "account": account}
        asked = _cluster(cluster, {name: value for name, value in options.items() if value is not None})
        job, number = together.submit(folder, asked, _rate(network))
        echo(f"job {number} on {nodes} nodes, in {job}", err=True)
    found = run_checks(folder)
    if nodes:
        measured = together.wait(job, number, wait)
        found += together.judge(measured, nodes)
        file = job / together.RESULT
        echo(f"measurements: {file}; use them with: simfle plan --constants {shlex.quote(str(file))}", err=True)
    if as_json:
        echo(to_json({"findings": [vars(each) for each in found], "nodes": measured}, indent=1))
    else:
        show(found)
    if any(each.state == "broken" for each in found):
        sys.exit(1)


def show(found: "list[Finding]") -> None:
    """Print one line per finding, and another for its advice."""
    from rich.text import Text

    from simfle.runtime.console import Console

    console = Console(highlight=False, soft_wrap=True)
    width = max(len(each.name) for each in found)
    room = console.width - width - 9 if console.is_terminal else 1 << 20  # in a pipe, keep each finding on one line

    def folded(text: str) -> str:
        return ("\n" + " " * (width + 9)).join(textwrap.wrap(text, max(room, 20), break_long_words=False))

    for each in found:
        name = f"{each.name:<{width}}  "
        console.print(Text.assemble((f"{each.state:<7}", STYLES[each.state]), name, folded(each.found)))
        if each.advice:
            console.print(Text(" " * (width + 9) + folded(f"-> {each.advice}"), "bold"))
    bad, notes = (sum(each.state == state for each in found) for state in ("broken", "note"))
    console.print(f"{len(found)} findings: {bad} errors, {notes} warnings" if bad or notes else "all checks passed")


def _cluster(file: Path | None, options: "dict[str, int | str]") -> "ClusterConfig":
    from simfle.config.schema import CONFIGS, load
    from simfle.slurm.config import ClusterConfig

    words = [f"{name}={json.dumps(value)}" for name, value in options.items()]
    words += ['time="0:15:00"', "signal_seconds=60"]  # a short job that has nothing to save
    return load(ClusterConfig, file or CONFIGS / "cluster" / "default.yaml", words)


def _rate(network: str) -> float:
    from simfle.plan.hardware import network_rate

    return network_rate(network) if network else 0.0


main = command(doctor)
