"""`launchers/slurm_eval.py`: evaluation as array jobs on a Slurm cluster."""

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simfle.commands.app import command, echo
from simfle.config import CONFIGS, load
from simfle.errors import UserError
from simfle.words import word

if TYPE_CHECKING:
    from simfle.eval.config import EvalConfig
    from simfle.slurm.config import ClusterConfig

SECONDS = 10.0


def slurm_eval(  # noqa: PLR0913, PLR0917 - each one is an option
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="a YAML file such as configs/eval/quick.yaml; values"),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="evaluate this run's newest checkpoint")] = None,
    backbone: Annotated[list[str] | None, typer.Option(help="a backbone.safetensors, timm:NAME; repeatable")] = None,
    benchmarks: Annotated[str, typer.Option(help="NAME=SHARDS, several with commas between them")] = "",
    protocols: Annotated[str, typer.Option(help="such as linear_fast,knn; default: each benchmark's own")] = "",
    seeds: Annotated[int, typer.Option(help="so many seeds, from 0", min=0)] = 0,
    watch: Annotated[bool, typer.Option("--watch", help="every new checkpoint of --run until it is finished")] = False,
    parallel: Annotated[int, typer.Option(help="most tasks at once", min=1)] = 32,
    partition: Annotated[str | None, typer.Option(help="sbatch --partition")] = None,
    account: Annotated[str | None, typer.Option(help="sbatch --account")] = None,
    qos: Annotated[str | None, typer.Option(help="sbatch --qos")] = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="time limit of one task, e.g. 2:00:00")] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML such as configs/cluster/default.yaml")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the sbatch script, submit nothing")] = False,
) -> None:
    """Submit one task for each backbone, benchmark, protocol and seed; what is done is skipped.

    For example: simfle slurm eval configs/eval/quick.yaml --run runs/faces --benchmarks rafdb=shards/rafdb
    """
    words = list(arguments or [])
    file = Path(words.pop(0)) if words and "=" not in words[0] else None
    if watch and run is None:
        raise UserError("--watch: name the run whose checkpoints are to be evaluated with --run RUN")
    if benchmarks:
        words.append(f"benchmarks=[{benchmarks}]")
    if protocols:
        words.append(f"protocols=[{protocols}]")
    if seeds:
        words.append(f"seeds=[{','.join(map(str, range(seeds)))}]")
    asked = _cluster(cluster, {"partition": partition, "account": account, "qos": qos, "time": time_limit})
    task = Task(file, words, list(backbone or []), run, asked, parallel, dry_run)

    from simfle.commands.logs import show_logs

    show_logs()
    if watch and run is not None:
        task.watch(run)
    else:
        task.submit(task.exported())


class Task:
    """What is to be evaluated, and where."""

    def __init__(
        self,
        file: Path | None,
        words: list[str],
        backbones: list[str],
        run: Path | None,
        cluster: "ClusterConfig",
        parallel: int,
        dry_run: bool,
    ) -> None:
        self.file, self.words, self.backbones, self.run = file, words, backbones, run
        self.cluster, self.parallel, self.dry_run = cluster, parallel, dry_run

    def exported(self) -> list[str]:
        """The run's newest backbone, in a folder of its step: later exports do not change what is evaluated."""
        if self.run is None:
            return []
        from simfle.eval.export import export_backbones, newest_checkpoint

        newest = newest_checkpoint(self.run)
        return [str(export_backbones(self.run, self.run / "export" / newest.name)["online"])]

    def submit(self, exported: list[str]) -> None:
        """One array job of all units."""
        from simfle.slurm import evaluation

        config = self._config(exported)
        place = self.run or Path(config.out)
        if self.dry_run:
            count = len(evaluation.planned(config))
            echo(
                evaluation.script(place.absolute(), place.absolute() / "slurm/JOB", self.cluster, count, self.parallel)
            )
            return
        job, found = evaluation.prepare(place.absolute(), config, self.cluster)
        number = evaluation.submit(job, self.cluster, len(found), self.parallel)
        _tell(f"job {number}: {len(found)} tasks, results in {config.out}; frozen in {job}")
        # By the tasks' own configuration, for simfle evaluate has not all options of this command.
        _tell(f"when they are done, the table: {shlex.join(['simfle', 'evaluate', str(job / 'config.yaml')])}")

    def watch(self, run: Path) -> None:
        """Submit each new checkpoint once, until the run has saved its last step."""
        from simfle.slurm.ending import newest_step
        from simfle.slurm.runs import status

        done = 0
        while True:
            finished = status(run).state in ("finished", "failed", "gone")
            step = newest_step(run)
            if step > done:
                _tell(f"{run}: checkpoint of step {step}")
                self.submit(self.exported())
                done = step
            if finished or self.dry_run:
                return
            time.sleep(SECONDS)

    def _config(self, exported: list[str]) -> "EvalConfig":
        from simfle.eval.config import EvalConfig

        words = list(self.words)
        if self.run is not None and not any(word.startswith("out=") for word in words):
            words.append(word("out", self.run / "eval"))
        config = load(EvalConfig, self.file, words)
        return replace(config, backbones=[*self.backbones, *exported, *config.backbones])


def _cluster(file: Path | None, options: dict[str, str | None]) -> "ClusterConfig":
    import json

    from simfle.slurm.config import ClusterConfig, check

    chosen = file or CONFIGS / "cluster" / "default.yaml"
    if file is None:
        _tell(f"cluster: {chosen.name} of configs/cluster")
    words = [f"{name}={json.dumps(value)}" for name, value in options.items() if value is not None]
    asked = load(ClusterConfig, chosen, words)
    check(asked)
    return asked


def _tell(text: str) -> None:
    echo(text, err=True)


main = command(slurm_eval)
