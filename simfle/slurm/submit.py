"""Check and freeze a configuration, and submit it to Slurm or run it on this machine, through submitit."""

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.io.atomic import read_text
from simfle.config.schema import PretrainConfig, TrainConfig
from simfle.errors import UserError
from simfle.runtime.entrypoint import gc_frozen_imports
from simfle.slurm import events
from simfle.slurm.config import ClusterConfig, check
from simfle.slurm.scheduler import available
from simfle.slurm.snapshot import absolute, snapshot

log = logging.getLogger(__name__)
OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_")
OF_THE_USER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # address of Slurm, and the user's credentials


def check_run(config: PretrainConfig, cluster: ClusterConfig, *, network: bool = True) -> None:
    """Raise UserError for a job that would fail after hours in the queue. With `network`, also build the network.

    Raises:
        UserError: If shards are not named, are missing or are unreadable, the batch cannot be split equally, values are
            out of range, the network cannot be built, or the run folder holds another run.
    """
    from simfle.train.preflight import check as check_config
    from simfle.train.preflight import preflight

    check(cluster)
    check_config(config)
    with gc_frozen_imports():
        from simfle.data.loader import has_dali
        from simfle.data.training_data import open_data
        from simfle.runtime.distributed import compute_batch_layout
    batch = config.train.global_batch
    compute_batch_layout(config.train, cluster.nodes * cluster.tasks)
    if cluster.min_nodes:
        compute_batch_layout(replace(config.train, micro_batch=0), cluster.min_nodes * cluster.tasks)
        _check_fewer_nodes(config.train, cluster)
    idle = [n for n in range(cluster.min_nodes or cluster.nodes, cluster.nodes) if batch % (n * cluster.tasks)]
    if idle:
        log.warning(
            "train.global_batch=%d: some processes would be idle on %s nodes", batch, " or ".join(map(str, idle))
        )
    if not any("://" in place for place in config.data.shards):
        open_data(config.data, config.train.seed, config.train.global_batch, 0)
    with gc_frozen_imports():
        preflight(config, network=network)
    if config.data.backend == "dali" and not cluster.container and not has_dali():
        raise UserError(
            "data.backend=dali: not installed here. Fix: pip install 'simfle[dali]', or set data.backend=opencv."
        )


def _check_fewer_nodes(train: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise UserError for a configuration that would fail on any possible number of nodes."""
    from simfle.slurm.task import TaskInfo, adapt_micro_batch, usable_tasks

    for nodes in range(cluster.min_nodes, cluster.nodes + 1):
        place = TaskInfo("", 0, 0, nodes * cluster.tasks, 0, cluster.tasks, ("",) * nodes)
        try:
            adapt_micro_batch(train, usable_tasks(place, cluster, train.global_batch))
        except UserError as error:
            raise UserError(f"on {nodes} nodes (--min-nodes {cluster.min_nodes}): {error}") from None


def prepare(config: PretrainConfig, cluster: ClusterConfig) -> Path:
    """Freeze code and configuration into the run folder; return the job's folder.

    Raises:
        UserError: If the folder cannot be written, or its name has characters that are special to Slurm.
    """
    config = absolute(config)
    if any(sign in config.train.run_dir for sign in "%\n\\"):
        raise UserError(
            f"train.run_dir={config.train.run_dir!r}: %, \\ and line breaks in paths are special to Slurm. "
            "Fix: rename it."
        )
    return snapshot(Path(config.train.run_dir), config, cluster)


def sbatch_script(job: Path, cluster: ClusterConfig) -> str:
    """Return the text of the sbatch script."""
    executor = slurm_executor(job, cluster, name=job.parents[1].name)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def submit(job: Path, cluster: ClusterConfig) -> str:
    """Submit a prepared job to Slurm; return its number.

    Raises:
        UserError: If Slurm is missing or refuses the job (the error contains Slurm's message).
    """
    from simfle.slurm.task import pretrain_task

    require_slurm()
    run = job.parents[1]
    executor = slurm_executor(job, cluster, name=run.name)
    try:
        submitted = executor.submit(pretrain_task, str(job))
    except refusals() as error:
        raise UserError(f"sbatch: {reason(error)}") from None
    events.append_event(run, "submitted", job=submitted.job_id, folder=job.name, nodes=cluster.nodes)
    return submitted.job_id


def require_slurm() -> None:
    """Raise a UserError if this machine cannot submit jobs."""
    if not available():
        raise UserError(
            "sbatch and srun are not installed here. Fix: submit from a login node, or add --dry-run or --local."
        )


def run_here(job: Path, cluster: ClusterConfig) -> Any:
    """Run the same job with all processes on this machine, through submitit's local executor; return its job."""
    import submitit

    from simfle.slurm.task import pretrain_task

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(job / "code"), os.environ.get("PYTHONPATH")]))
    executor = submitit.LocalExecutor(folder=job)
    executor.update_parameters(
        tasks_per_node=cluster.nodes * cluster.tasks,
        gpus_per_node=cluster.gpus_per_node,
        timeout_min=60 * 24 * 365,  # there is no time limit on this machine
        stderr_to_stdout=True,
    )
    # Ctrl-C in a terminal reaches the tasks, which save; submitit's controller would kill them within a second.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    here = Path.cwd()
    os.chdir(job / "code")  # python -m searches the current folder first, which may be a checkout
    try:
        with outside_of_jobs():
            submitted = executor.submit(pretrain_task, str(job))
    finally:
        os.chdir(here)
        signal.signal(signal.SIGINT, before)
    events.append_event(job.parents[1], "submitted", job=submitted.job_id, folder=job.name, nodes=1, local=True)
    return submitted


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Remove Slurm's variables of a job or session around this process.

    Otherwise its numbers of tasks and of restarts, and its limits of memory, would apply to the new job.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith(OF_A_JOB) and name not in OF_THE_USER}
    for name in own:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(own)


def slurm_executor(job: Path, cluster: ClusterConfig, name: str, *, ends: bool = True) -> Any:
    """Return submitit's executor for a job of this cluster. ends: whether the batch shell decides on a requeue."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        """Executor that creates scripts without Slurm for --dry-run; jobs inherit nothing of a surrounding job."""

        def _internal_process_submissions(self, delayed_submissions: Any) -> Any:
            try:
                with outside_of_jobs():
                    return super()._internal_process_submissions(delayed_submissions)
            finally:  # the script contains cluster.env; a umask would be passed on to the job
                for script in job.glob("*.sh"):
                    script.chmod(0o600)

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Executor(folder=job, python=_python(job, cluster))
    executor.update_parameters(
        job_name=name,
        **({} if _is_elastic(cluster) else {"ntasks_per_node": cluster.tasks}),
        signal_delay_s=cluster.signal_seconds,
        stderr_to_stdout=True,
        setup=_setup(job, cluster),
        teardown=_teardown(job) if ends else None,
        srun_args=_srun_arguments(job, cluster),
        wckey=None,
        additional_parameters=_options(cluster),
    )
    return executor


def _options(cluster: ClusterConfig) -> dict[str, Any]:
    """Return options of sbatch, by name without dashes."""
    options: dict[str, Any] = {"nodes": cluster.nodes, "time": cluster.time, "requeue": True}
    for option in ("partition", "account", "qos", "constraint", "mem"):
        if getattr(cluster, option):
            options[option] = getattr(cluster, option)
    if _is_elastic(cluster):
        # With --ntasks-per-node Slurm counts tasks for the minimum number of nodes, and allocates no more nodes.
        options["nodes"] = f"{cluster.min_nodes}-{cluster.nodes}"
        options["mincpus"] = cluster.tasks * max(1, cluster.cpus_per_task)
    elif cluster.cpus_per_task:
        options["cpus-per-task"] = cluster.cpus_per_task
    if cluster.gpus_per_node:
        options["gpus-per-node"] = cluster.gpus_per_node
    for word in cluster.extra_sbatch:
        option, _, value = word.partition("=")
        options[option] = value or True
    return options


def _is_elastic(cluster: ClusterConfig) -> bool:
    return 0 < cluster.min_nodes < cluster.nodes


def _setup(job: Path, cluster: ClusterConfig) -> list[str]:
    code = shlex.quote(str(job / "code"))
    lines = [
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",  # a module may provide torch through this variable
        # Since Slurm 22.05, srun does not inherit this value from sbatch.
        *([f"export SRUN_CPUS_PER_TASK={cluster.cpus_per_task}"] if cluster.cpus_per_task else []),
        *(f"export {name}={shlex.quote(value)}" for name, _, value in (w.partition("=") for w in cluster.env)),
        "trap : TERM USR2  # outlive the tasks, to record how they ended and to requeue the job",
    ]
    # This line is last, because earlier lines may use relative paths. python -m searches the current folder before
    # PYTHONPATH, so a job submitted from a checkout would run the checkout's current code.
    return [*lines, *cluster.setup, f"cd {code}"]


def _teardown(job: Path) -> list[str]:
    words = [sys.executable, "-m", "simfle.slurm.requeue", str(job)]
    return ["code=$?", f"{shlex.join(words)} $code", "exit $?"]


def _srun_arguments(job: Path, cluster: ClusterConfig) -> list[str]:
    """Return srun's options: a killed task ends all tasks immediately; idle tasks may exit early.

    --export=ALL passes the script's variables even if jobs are submitted without an environment (SBATCH_EXPORT=NONE).
    """
    arguments = ["--kill-on-bad-exit=1", "--wait=0", "--export=ALL"]
    if _is_elastic(cluster):
        arguments.append(f"--ntasks-per-node={cluster.tasks}")
    if cluster.container and not cluster.container.endswith(".sif"):
        arguments += [f"--container-image={cluster.container}", f"--container-mounts={','.join(_mounts(job, cluster))}"]
    return arguments


def _python(job: Path, cluster: ClusterConfig) -> str:
    """Return the command before `-m`: this interpreter, or the interpreter in the container."""
    if not cluster.container:
        return shlex.quote(sys.executable)
    if not cluster.container.endswith(".sif"):
        return shlex.quote(cluster.container_python)
    gpus = ["--nv"] if cluster.gpus_per_node else []
    binds = [word for mount in _mounts(job, cluster) for word in ("--bind", mount)]
    return shlex.join(["apptainer", "exec", *gpus, *binds, cluster.container, cluster.container_python])


def _mounts(job: Path, cluster: ClusterConfig) -> list[str]:
    """Return the folders to mount: those of run and shards, and the configured folders."""
    import yaml

    config = yaml.safe_load(read_text(job / "config.yaml"))
    shards = [place for place in config.get("data", {}).get("shards", []) if "://" not in place]
    return list(dict.fromkeys(f"{place}:{place}" for place in [str(job.parents[1]), *shards, *cluster.mounts]))


def refusals() -> tuple[type[Exception], ...]:
    """Return the types of submitit's errors when sbatch refuses a job, is killed, or prints no job number."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    return FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError


def reason(error: Exception) -> str:
    """Return sbatch's message from submitit's error."""
    if "sbatch output" in str(error):
        return (
            f"no job number in the output, but {str(error).partition('sbatch output')[2].splitlines()[0].strip()}. "
            "Fix: check whether the job is in the queue (squeue --me) before you submit it again"
        )
    cause = error if isinstance(error, subprocess.CalledProcessError) else error.__cause__ or error
    output = getattr(cause, "stderr", None) or getattr(cause, "output", None) or str(error)
    text = output.decode(errors="replace") if isinstance(output, bytes) else str(output)
    lines = [line for line in text.splitlines() if "error" in line.lower()]
    return (lines or text.strip().splitlines() or ["failed without a message"])[-1].removeprefix("sbatch: error: ")
