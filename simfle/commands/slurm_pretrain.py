"""`launchers/slurm_pretrain.py`: pretraining on a Slurm cluster."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simfle.commands.app import command, echo
from simfle.config import CONFIGS, PretrainConfig, load
from simfle.errors import UserError

if TYPE_CHECKING:
    from simfle.slurm.config import ClusterConfig

CONFIG = CONFIGS / "pretrain" / "simfle_resnet50.yaml"
CLUSTER = CONFIGS / "cluster" / "default.yaml"


def slurm_pretrain(  # noqa: PLR0913, PLR0917
    config: Annotated[str | None, typer.Argument(help="YAML such as configs/pretrain/simfle_resnet50.yaml")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. data.shards=[shards/faces]; cluster.key=value")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="nodes of the job")] = None,
    min_nodes: Annotated[int | None, typer.Option(help="fewest to go on with when nodes are lost")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="one process for each; 0: CPU nodes")] = None,
    partition: Annotated[str | None, typer.Option(help="sbatch --partition")] = None,
    account: Annotated[str | None, typer.Option(help="sbatch --account")] = None,
    qos: Annotated[str | None, typer.Option(help="sbatch --qos")] = None,
    time: Annotated[str | None, typer.Option(help="time limit of one start, e.g. 24:00:00")] = None,
    constraint: Annotated[str | None, typer.Option(help="sbatch --constraint, e.g. h100")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="cores of each process")] = None,
    mem: Annotated[str | None, typer.Option(help="memory of a node, e.g. 200G")] = None,
    signal_seconds: Annotated[int | None, typer.Option(help="seconds between stop signal and end")] = None,
    setup: Annotated[list[str] | None, typer.Option(help="shell line before the job; may be repeated")] = None,
    container: Annotated[str | None, typer.Option(help="image: FILE.sif (apptainer), or one for pyxis")] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML such as configs/cluster/default.yaml")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check all but the network, print the sbatch script, submit nothing")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="show progress and rank 0's log until the end")] = False,
    local: Annotated[bool, typer.Option("--local", help="run all processes here, through submitit")] = False,
) -> None:
    """Submit a pretraining job: one process per GPU, resumed by itself after preemption, time limits and lost nodes.

    For example: simfle slurm pretrain --nodes 8 data.shards=[shards/faces]
    """
    options = {
        "nodes": nodes, "min_nodes": min_nodes, "gpus_per_node": gpus_per_node, "partition": partition,
        "account": account, "qos": qos, "time": time, "constraint": constraint, "cpus_per_task": cpus_per_task,
        "mem": mem, "signal_seconds": signal_seconds, "setup": setup, "container": container,
    }  # fmt: skip
    if dry_run and (follow or local):
        raise UserError("--dry-run submits nothing: --follow and --local do not go with it")
    words = list(overrides or [])
    if config is not None and "=" in config:
        words, config = [config, *words], None
    resolved, asked = read_configs(config, words, cluster, options)

    from simfle.commands.logs import show_logs
    from simfle.slurm import submit

    show_logs()
    submit.check_run(resolved, asked, network=not dry_run)
    if dry_run:
        echo(dry(resolved, asked))
        return
    job = submit.prepare(resolved, asked)
    if local:
        sys.exit(_follow_here(job, submit.run_here(job, asked), asked.nodes * asked.tasks))
    number = submit.submit(job, asked)
    _tell(f"job {number}: {asked.nodes} nodes x {asked.tasks} processes; frozen in {job}")
    if follow:
        from simfle.slurm.follow import follow as follow_job

        sys.exit(0 if follow_job(job, number, echo) else 1)
    _tell(f"follow it with: simfle runs {shlex.quote(str(job.parents[1]))}; log of rank 0: {job}/{number}_0_log.out")


def read_configs(
    config: str | None, words: list[str], cluster: Path | None, options: dict[str, Any]
) -> "tuple[PretrainConfig, ClusterConfig]":
    """The run's and the cluster's configuration; says which files were taken where none was named."""
    from simfle.slurm.config import ClusterConfig

    file = Path(config) if config else CONFIG
    cluster_file = cluster or CLUSTER
    if not config:
        _tell(f"config: {_shown(file)}")
    if not cluster:
        _tell(f"cluster: {_shown(cluster_file)}")
    of_cluster = [word.removeprefix("cluster.") for word in words if word.startswith("cluster.")]
    of_run = [word for word in words if not word.startswith("cluster.")]
    for name, value in options.items():
        if value is not None:
            of_cluster.append(f"{name}={_yaml(value)}")
    return load(PretrainConfig, file, of_run), load(ClusterConfig, cluster_file, of_cluster)


def dry(config: PretrainConfig, cluster: "ClusterConfig") -> str:
    """The script that sbatch would be given; nothing is kept."""
    import tempfile

    from simfle.slurm import freeze, submit

    run = Path(config.train.run).absolute()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / run.name / "slurm" / "JOB"
        place.mkdir(parents=True)
        freeze.write(place / "config.yaml", freeze.absolute(config))
        return submit.sbatch_script(place, cluster).replace(str(Path(folder) / run.name), str(run))


def _follow_here(job: Path, submitted: Any, processes: int) -> int:
    """Until all processes have ended; 0 if the run finished or was stopped and saved."""
    from simfle.slurm.follow import follow_local

    decision = follow_local(job, submitted, processes, echo)
    _tell(decision.words)
    return int(decision.failure)


def _yaml(value: Any) -> str:
    """As a dotlist value: texts quoted, so that no character of theirs is syntax."""
    import json

    return json.dumps(value)


def _shown(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def _tell(text: str) -> None:
    echo(text, err=True)


main = command(slurm_pretrain)
