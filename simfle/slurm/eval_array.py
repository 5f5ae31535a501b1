"""Evaluation as an array job: one task per backbone, benchmark, protocol and seed; completed tasks are skipped."""

import faulthandler
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from simfle.config.schema import load
from simfle.data.dataset import ShardCorpus
from simfle.errors import UserError
from simfle.eval.config import EvalConfig
from simfle.eval.tasks import EvalTask, eval_tasks
from simfle.runtime.logs import log_to_stderr, say
from simfle.slurm.config import ClusterConfig
from simfle.slurm.snapshot import snapshot
from simfle.slurm.submit import reason, refusals, require_slurm, slurm_executor


def absolute(config: EvalConfig) -> EvalConfig:
    """Return the same evaluation with absolute paths."""
    named = [word.partition("=") for word in config.benchmarks]
    return replace(
        config,
        benchmarks=[f"{_yaml(name)}{sign}{_absolute(place) if sign else ''}" for name, sign, place in named],
        shards=[_absolute(place) for place in config.shards],
        ffcv_files=[_absolute(place) for place in config.ffcv_files],
        backbones=[word if ":" in word else _absolute(word) for word in config.backbones],
        out=_absolute(config.out),
        cache_dir=_absolute(config.cache_dir) if config.cache_dir else "",
    )


def of_one_task(cluster: ClusterConfig) -> ClusterConfig:
    """Return the resources of a task: one process, one GPU if the cluster has GPUs, a shared node."""
    gpus = min(1, cluster.gpus_per_node)
    shared = [word for word in cluster.extra_sbatch if not word.startswith("exclusive")]
    return replace(cluster, nodes=1, min_nodes=0, gpus_per_node=gpus, tasks_per_node=1, extra_sbatch=shared)


def prepare(run: Path, config: EvalConfig, cluster: ClusterConfig) -> tuple[Path, list[EvalTask]]:
    """Freeze code and configuration into RUN/slurm; return the job's folder and its evaluation tasks.

    Raises:
        UserError: If a folder cannot be written; see also `planned`.
    """
    config = absolute(config)
    found = planned(config)
    return snapshot(run, config, of_one_task(cluster), name="eval"), found


def planned(config: EvalConfig) -> list[EvalTask]:
    """Return the evaluation tasks; check the shards once, before many array tasks wait in the queue.

    Raises:
        UserError: If shards are missing, are corrupt or lack a split; see also `eval_tasks`.
    """
    found = eval_tasks(config)
    for benchmark in {unit.benchmark.name: unit.benchmark for unit in found}.values():
        if not any("://" in place for place in benchmark.shards):
            for split in filter(None, (benchmark.train, benchmark.val, benchmark.test)):
                ShardCorpus(benchmark.shards, [split])
    return found


def script(run: Path, job: Path, cluster: ClusterConfig, count: int, parallel: int) -> str:
    """Return the text of the sbatch script."""
    executor = slurm_executor(job, of_one_task(cluster), name=f"{run.name}-eval", ends=False)
    executor.update_parameters(array_parallelism=parallel)
    executor.parameters["map_count"] = count  # set as submitit does for arrays; update_parameters refuses it
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def submit(job: Path, cluster: ClusterConfig, count: int, parallel: int) -> str:
    """Submit the tasks to Slurm, at most `parallel` at once; return the number of the array job.

    Raises:
        UserError: If Slurm is missing, or it refuses the job.
    """
    require_slurm()
    executor = slurm_executor(job, of_one_task(cluster), name=f"{job.parents[1].name}-eval", ends=False)
    executor.update_parameters(array_parallelism=parallel)
    try:
        if count == 1:
            return str(executor.submit(evaluate_task, str(job), 0).job_id)
        jobs = executor.map_array(evaluate_task, [str(job)] * count, range(count))
    except refusals() as error:
        raise UserError(f"sbatch: {reason(error)}") from None
    return str(jobs[0].job_id).split("_")[0]


def evaluate_task(folder: str, index: int) -> None:
    """Compute task number `index` of the job in `folder`; an interrupted task starts from scratch when resubmitted."""
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # submitit would requeue without saving
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.register(signal.SIGQUIT)
    log_to_stderr()
    with suppress(KeyError, OSError):  # a benchmark's file may name shards relative to the submission's folder
        os.chdir(os.environ["SLURM_SUBMIT_DIR"])
    try:
        config = load(EvalConfig, Path(folder) / "config.yaml")
        from simfle.eval.evaluator import run_task

        run_task(config, eval_tasks(config)[index], ["slurm_eval", folder, str(index)])
    except UserError as error:
        say(f"error: {error}")
        sys.exit(65)


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())


def _yaml(word: str) -> str:
    """Make the path of a custom benchmark's file absolute; names do not change."""
    return _absolute(word) if word.endswith((".yaml", ".yml")) else word
