"""`simfle slurm pretrain`: submit pretraining to a Slurm cluster."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simfle.commands.app import command, echo
from simfle.commands.plan import efficiency_note
from simfle.config.schema import CONFIGS, PretrainConfig, load
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
    nodes: Annotated[int | None, typer.Option(help="number of nodes")] = None,
    min_nodes: Annotated[
        int | None, typer.Option(help="minimum number of nodes to resume with if nodes are lost")
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="processes per node, one per GPU (0 = CPU nodes)")] = None,
    partition: Annotated[str | None, typer.Option(help="sbatch --partition")] = None,
    account: Annotated[str | None, typer.Option(help="sbatch --account")] = None,
    qos: Annotated[str | None, typer.Option(help="sbatch --qos")] = None,
    time: Annotated[str | None, typer.Option(help="time limit per start, e.g. 24:00:00")] = None,
    constraint: Annotated[str | None, typer.Option(help="sbatch --constraint, e.g. h100")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="CPU cores per process")] = None,
    mem: Annotated[str | None, typer.Option(help="memory per node, e.g. 200G")] = None,
    signal_seconds: Annotated[
        int | None, typer.Option(help="seconds from the stop signal to the end of the job")
    ] = None,
    setup: Annotated[list[str] | None, typer.Option(help="shell line to run before the job (repeatable)")] = None,
    container: Annotated[
        str | None, typer.Option(help="container image: FILE.sif (apptainer), or an image for pyxis")
    ] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML such as configs/cluster/default.yaml")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="check everything except the network and print the sbatch script without submitting it"
        ),
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="print progress and the log of rank 0 until the job ends")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="run all processes on this machine, through submitit")] = False,
) -> None:
    """Submit a pretraining job: one process per GPU; it resumes after preemption, time limits and lost nodes.

    For example: simfle slurm pretrain --nodes 8 data.shards=[shards/faces]
    """
    options = {
        "nodes": nodes, "min_nodes": min_nodes, "gpus_per_node": gpus_per_node, "partition": partition,
        "account": account, "qos": qos, "time": time, "constraint": constraint, "cpus_per_task": cpus_per_task,
        "mem": mem, "signal_seconds": signal_seconds, "setup": setup, "container": container,
    }  # fmt: skip
    if dry_run and (follow or local):
        raise UserError("--dry-run: cannot be combined with --follow or --local. Fix: remove one of them.")
    words = list(overrides or [])
    if config is not None and "=" in config:
        words, config = [config, *words], None
    resolved, asked = read_configs(config, words, cluster, options)
    check_and_submit(resolved, asked, dry_run=dry_run, local=local, follow=follow)


def check_and_submit(
    config: PretrainConfig, cluster: "ClusterConfig", *, dry_run: bool, local: bool, follow: bool
) -> None:
    """Check a job, then submit it, run it on this machine, or print its script.

    Args:
        config: the run.
        cluster: resources of the job.
        dry_run: print the sbatch script instead of submitting it.
        local: run all processes on this machine, then exit.
        follow: print progress until the submitted job ends, then exit.

    Raises:
        UserError: If the job would fail or cannot be submitted.
    """
    from simfle.commands.logs import show_logs
    from simfle.slurm import submit

    show_logs()
    submit.check_run(config, cluster, network=not dry_run)
    # One node is efficient at any usual batch, and counting the network's operations takes seconds.
    if cluster.nodes > 1 and cluster.gpus_per_node and not any("://" in place for place in config.data.shards):
        _tell(efficiency_note(config, cluster.nodes, cluster.gpus_per_node))
    if dry_run:
        echo(dry(config, cluster))
        return
    job = submit.prepare(config, cluster)
    if local:
        sys.exit(_follow_here(job, submit.run_here(job, cluster), cluster.nodes * cluster.tasks))
    number = submit.submit(job, cluster)
    _tell(f"job {number}: {cluster.nodes} nodes x {cluster.tasks} processes; frozen in {job}")
    if follow:
        from simfle.slurm.follow import follow as follow_job

        sys.exit(0 if follow_job(job, number, echo) else 1)
    _tell(f"progress: simfle runs {shlex.quote(str(job.parents[1]))}; log of rank 0: {job}/{number}_0_log.out")


def read_configs(
    config: str | None, words: list[str], cluster: Path | None, options: dict[str, Any]
) -> "tuple[PretrainConfig, ClusterConfig]":
    """Return the configurations of run and cluster; print the names of default files that are used."""
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
    """Return the sbatch script; delete all files that were written for it."""
    import tempfile

    from simfle.slurm import snapshot, submit

    run = Path(config.train.run_dir).absolute()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / run.name / "slurm" / "JOB"
        place.mkdir(parents=True)
        snapshot.write(place / "config.yaml", snapshot.absolute(config))
        return submit.sbatch_script(place, cluster).replace(str(Path(folder) / run.name), str(run))


def _follow_here(job: Path, submitted: Any, processes: int) -> int:
    """Wait until all processes have ended; return 0 if the run finished, or stopped with a checkpoint."""
    from simfle.slurm.follow import follow_local

    decision = follow_local(job, submitted, processes, echo)
    _tell(decision.words)
    return int(decision.failure)


def _yaml(value: Any) -> str:
    """Return a dotlist value: text is quoted, so that its characters are not parsed as syntax."""
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
