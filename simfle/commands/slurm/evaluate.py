"""`simfle slurm eval`: run evaluations as array jobs on a Slurm cluster."""

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simfle.commands.app import command, echo
from simfle.config.overrides import format_override
from simfle.config.schema import CONFIGS, load
from simfle.errors import UserError

if TYPE_CHECKING:
    from simfle.eval.config import EvalConfig
    from simfle.slurm.config import ClusterConfig

SECONDS = 10.0


def slurm_eval(  # noqa: PLR0913, PLR0917 - one argument per option
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="YAML file such as configs/eval/quick.yaml, and values that override it",
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="evaluate this run's newest checkpoint")] = None,
    backbone: Annotated[list[str] | None, typer.Option(help="backbone.safetensors or timm:NAME (repeatable)")] = None,
    benchmarks: Annotated[str, typer.Option(help="NAME=SHARDS, comma-separated")] = "",
    protocols: Annotated[
        str, typer.Option(help="protocols such as linear_fast,knn (default: those of each benchmark)")
    ] = "",
    seeds: Annotated[int, typer.Option(help="number of seeds, counted from 0 (0 = from CONFIG)", min=0)] = 0,
    watch: Annotated[
        bool, typer.Option("--watch", help="evaluate every new checkpoint of --run until the run is finished")
    ] = False,
    parallel: Annotated[int, typer.Option(help="maximum number of concurrent tasks", min=1)] = 32,
    partition: Annotated[str | None, typer.Option(help="sbatch --partition")] = None,
    account: Annotated[str | None, typer.Option(help="sbatch --account")] = None,
    qos: Annotated[str | None, typer.Option(help="sbatch --qos")] = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="time limit per task, e.g. 2:00:00")] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML such as configs/cluster/default.yaml")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the sbatch script without submitting it")] = False,
) -> None:
    """Submit one task for each backbone, benchmark, protocol and seed. Existing results are skipped.

    For example: simfle slurm eval configs/eval/quick.yaml --run runs/faces --benchmarks rafdb=shards/rafdb
    """
    words = list(arguments or [])
    file = Path(words.pop(0)) if words and "=" not in words[0] else None
    if watch and run is None:
        raise UserError("--watch: no run is given. Fix: add --run RUN.")
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
    """Backbones, benchmarks and cluster of the evaluations to submit."""

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
        """Export the run's newest backbone to a folder for its step, which later exports do not change."""
        if self.run is None:
            return []
        from simfle.export.timm import export_backbones, newest_checkpoint

        newest = newest_checkpoint(self.run)
        return [str(export_backbones(self.run, self.run / "export" / newest.name)["online"])]

    def submit(self, exported: list[str]) -> None:
        """Submit one array job for all tasks."""
        from simfle.slurm import eval_array

        config = self._config(exported)
        place = self.run or Path(config.out)
        if self.dry_run:
            count = len(eval_array.planned(config))
            echo(
                eval_array.script(place.absolute(), place.absolute() / "slurm/JOB", self.cluster, count, self.parallel)
            )
            return
        job, found = eval_array.prepare(place.absolute(), config, self.cluster)
        number = eval_array.submit(job, self.cluster, len(found), self.parallel)
        _tell(f"job {number}: {len(found)} tasks, results in {config.out}; frozen in {job}")
        # Use the tasks' configuration, because simfle evaluate lacks some options of this command.
        _tell(f"after the job, print the table with: {shlex.join(['simfle', 'evaluate', str(job / 'config.yaml')])}")

    def watch(self, run: Path) -> None:
        """Submit an evaluation of each new checkpoint once, until the run has saved its last step."""
        from simfle.slurm.requeue import newest_step
        from simfle.slurm.status import status

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
            words.append(format_override("out", self.run / "eval"))
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
