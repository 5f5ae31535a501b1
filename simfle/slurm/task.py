"""Run one task of a job: from the allocation to a process of the run, and its exit record."""

import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from simfle.config.schema import PretrainConfig, TrainConfig, load
from simfle.errors import PeerLostError, RunDirLockedError, RunStopped, UserError
from simfle.runtime.entrypoint import OWN_CORES, gc_frozen_imports
from simfle.runtime.logs import log_to_stderr, say
from simfle.runtime.signals import StopSignal
from simfle.slurm import events
from simfle.slurm.config import ClusterConfig
from simfle.slurm.events import TaskExit

# Exit codes, after sysexits.h, for people and logs: the end of the job reads the tasks' exit records. A stopped task
# exits with 0, because srun kills all others at the first nonzero exit, and rank 0 may still be saving.
CODES = {
    events.DONE: 0,
    events.IDLE: 0,
    events.PREEMPTED: 0,
    events.USER_ERROR: 65,
    events.BUG: 70,
    events.PEER_LOST: 69,
}
LOCK_TIMEOUT = 120.0  # maximum seconds to wait for a former holder of the run folder, after its node was lost
PORTS = 20000, 12000  # first port and number of ports: above the usual services, below Linux's ephemeral ports


@dataclass(frozen=True)
class TaskInfo:
    """This task in its job. `start` is 0 at first and increases by 1 with each requeue."""

    job: str
    start: int
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    nodes: tuple[str, ...]

    @property
    def host(self) -> str:
        return os.environ.get("SLURMD_NODENAME", self.nodes[0])

    @property
    def port(self) -> int:
        """Port of the rendezvous, derived from the job and its start, because the old port may still be bound after a
        requeue."""
        number = int("".join(filter(str.isdigit, self.job)) or 0)
        return PORTS[0] + (number * 61 + self.start) % PORTS[1]


def current_task() -> TaskInfo:
    """Read the environment that submitit reads, of Slurm or its local executor."""
    from submitit.core.job_environment import JobEnvironment

    task = JobEnvironment()
    nodes = tuple(task.hostnames)
    start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    local_size = max(1, task.num_tasks // task.num_nodes)
    return TaskInfo(task.job_id, start, task.global_rank, task.num_tasks, task.local_rank, local_size, nodes)


def pretrain_task(folder: str) -> None:
    """Pretrain as one process of the job in `folder`; end the process with a code of CODES."""
    job = Path(folder)
    log_to_stderr()
    faulthandler.register(signal.SIGQUIT)  # stacks of all threads, to the log: scancel --signal=QUIT
    with (
        StopSignal() as stop
    ):  # set before torch is imported: submitit's handlers would requeue as a failure, without saving
        place = current_task()
        cluster = load(ClusterConfig, job / "cluster.yaml")
        config = load(PretrainConfig, job / "config.yaml")
        with record_exit(job, place):
            usable = usable_tasks(place, cluster, config.train.global_batch)
            if place.rank >= usable:
                raise IdleTask(
                    f"{place.world_size} processes cannot share {config.train.global_batch} samples; using {usable}"
                )
            place = replace(place, world_size=usable)
            config = adapt_config(config, place, cluster)
            set_rank_env(place, cluster)
            log_start(job, place, Path(config.train.run_dir), cluster)
            with gc_frozen_imports():
                from simfle.train.pretrain import JobContext, pretrain
                from simfle.train.run_lock import JobStart

            def hung(words: str) -> None:
                events.write_task_exit(job, place.start, TaskExit(place.rank, place.host, events.HUNG, words))

            lead = float(cluster.signal_seconds)
            start = JobStart(place.job, place.start)
            pretrain(config, JobContext(stop, LOCK_TIMEOUT if place.start else 0.0, lead, hung, start))


class IdleTask(Exception):  # noqa: N818 - an expected exit, not an error
    """Notice that this task is not needed for the global batch."""


def usable_tasks(task: TaskInfo, cluster: ClusterConfig, global_batch: int) -> int:
    """Return the maximum number of tasks, on whole nodes, that can share the global batch.

    Raises:
        UserError: If no allowed number of nodes divides the batch, or the requeues are used up.
    """
    if task.start > cluster.max_requeues:
        raise UserError(f"requeued {task.start} times, max_requeues={cluster.max_requeues}. Fix: submit the run again.")
    here = len(task.nodes)
    least = cluster.min_nodes or here
    for nodes in range(here, least - 1, -1):
        tasks = nodes * task.local_world_size
        if global_batch % tasks == 0 and global_batch // tasks >= 2:
            return tasks
    raise UserError(
        f"train.global_batch={global_batch}: cannot be shared by {task.local_world_size} processes on each of {least} "
        f"to {here} nodes. Fix: use a batch that the number of processes divides, or other numbers of nodes."
    )


def adapt_config(config: PretrainConfig, task: TaskInfo, cluster: ClusterConfig) -> PretrainConfig:
    """Adapt the config to the number of processes: a micro-batch that divides the share of each process, node-local
    caches.

    Raises:
        UserError: If there is no such micro-batch, or no folder for caches.
    """
    data = config.data
    scratch = local_scratch_dir(cluster)
    if scratch is not None and not data.cache_dir:
        data = replace(data, cache_dir=str(scratch / "shards"))
    micro = adapt_micro_batch(config.train, task.world_size)
    return replace(config, train=replace(config.train, micro_batch=micro), data=data)


def adapt_micro_batch(train: TrainConfig, processes: int) -> int:
    """Return the largest micro-batch, up to the configured one, that divides the share of each process.

    Raises:
        UserError: If there is no such micro-batch of 2 samples or more.
    """
    share, most = train.global_batch // processes, train.micro_batch
    if not most or share % most == 0:
        return most
    fitting = [size for size in range(2, min(most, share) + 1) if share % size == 0]
    if not fitting:
        raise UserError(
            f"train.micro_batch={most}: none from 2 to {most} divides the {share} samples per process of "
            f"train.global_batch={train.global_batch} on {processes} processes. Fix: raise it, or change the batch."
        )
    return fitting[-1]


def local_scratch_dir(cluster: ClusterConfig) -> Path | None:
    """Create and return the node-local folder for caches, or return None if none is configured.

    Raises:
        UserError: If the folder cannot be created, or uses an environment variable that is not set in this job.
    """
    if not cluster.local_scratch:
        return None
    text = os.path.expandvars(cluster.local_scratch)
    if "$" in text:
        raise UserError(
            f"cluster.local_scratch={cluster.local_scratch}: uses an environment variable that is not set in this job. "
            "Fix: use a variable that is set."
        )
    folder = Path(text) / "simfle"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cluster.local_scratch={folder}: cannot be created: {error.strerror}. Fix: use another folder."
        ) from None
    return folder


def set_rank_env(task: TaskInfo, cluster: ClusterConfig) -> None:
    """Set the environment of `simfle.runtime.distributed` and libraries: ranks, rendezvous, caches, cores."""
    own = {"RANK": task.rank, "WORLD_SIZE": task.world_size, "LOCAL_RANK": task.local_rank}
    own |= {"LOCAL_WORLD_SIZE": task.local_world_size}
    os.environ.update({name: str(value) for name, value in own.items()})
    os.environ["MASTER_ADDR"] = rendezvous_address(task)
    os.environ["MASTER_PORT"] = str(task.port)
    scratch = local_scratch_dir(cluster)
    if scratch is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(scratch / "triton"))
    bind_cores(task)


def rendezvous_address(task: TaskInfo) -> str:
    """Return the first node's name, or, if the network cannot resolve it, the address from which srun was started."""
    if len(task.nodes) == 1:
        return "127.0.0.1"
    try:
        socket.getaddrinfo(task.nodes[0], task.port)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", task.nodes[0])
    return task.nodes[0]


def bind_cores(task: TaskInfo) -> None:
    """Bind each process of a node to separate cores unless Slurm did (no task/affinity plugin, no cpus-per-task).

    OWN_CORES and, if the user has not set it, OMP_NUM_THREADS record this: the cores must not be divided again.
    """
    cores = sorted(os.sched_getaffinity(0))
    unbound = os.environ.get("SLURM_CPU_BIND_TYPE", "none") in ("none", "")
    if unbound and task.local_world_size > 1:
        share = len(cores) // task.local_world_size
        if not share:
            return  # more processes than cores
        cores = cores[task.local_rank * share : (task.local_rank + 1) * share]
        os.sched_setaffinity(0, cores)
    os.environ[OWN_CORES] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cores)))


def log_start(job: Path, task: TaskInfo, run: Path, cluster: ClusterConfig) -> None:
    """Record and print the job's nodes and processes, once for all tasks."""
    if task.rank:
        return
    facts = {
        "job": task.job,
        "folder": job.name,
        "start": task.start,
        "nodes": list(task.nodes),
        "processes": task.world_size,
    }
    events.append_event(run, "started", **facts)
    words = f"job {task.job}, start {task.start}: {task.world_size} processes on {', '.join(task.nodes)}"
    if len(task.nodes) < cluster.nodes:
        words += f"; requested {cluster.nodes} nodes, at least {cluster.min_nodes}"
    say(words)


@contextmanager
def record_exit(job: Path, task: TaskInfo) -> Iterator[None]:
    """Record the exit of this task, print it in one line, and exit with its code. Only bugs print a traceback."""
    kind, words = events.DONE, ""
    try:
        yield
    except IdleTask as spare:
        kind, words = events.IDLE, str(spare)
    except RunStopped as stopped:
        kind, words = events.PREEMPTED if stopped.by_signal else events.DONE, str(stopped)
    except UserError as error:
        kind, words = events.USER_ERROR, str(error)
    except Exception as error:  # noqa: BLE001 - the last handler records every error, and the process exits
        kind = events.PEER_LOST if is_peer_loss(error) else events.BUG
        words = str(error).splitlines()[0] if str(error) else ""
        words = words if isinstance(error, RunDirLockedError) else f"{type(error).__name__}: {words}"
        if kind == events.BUG:
            traceback.print_exc()
    try:
        events.write_task_exit(job, task.start, TaskExit(task.rank, task.host, kind, words))
    except OSError as error:  # the job's folder was deleted, or its disk is full, so only the log has the reason
        say(f"error: {job}: cannot record how this process ended: {error.strerror}")
    if words:
        say(f"{'' if kind in (events.PREEMPTED, events.IDLE) else 'error: '}{words}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if kind != events.DONE:
        os._exit(CODES[kind])  # skip destructors of a broken process group, which may wait for dead processes


def is_peer_loss(error: Exception) -> bool:
    """Return whether a torch error means that other processes or the GPU are lost; gloo raises a plain RuntimeError."""
    import torch.distributed as dist

    from simfle.runtime.device import device_failed

    if isinstance(error, PeerLostError | dist.DistError | ConnectionError) or device_failed(error):
        return True
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset", "gloo", "nccl", "broken pipe", "store", "timed out")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
