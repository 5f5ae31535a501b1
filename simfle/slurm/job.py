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

from simfle.config import PretrainConfig, TrainConfig, load
from simfle.errors import FolderHeld, PeersMissing, RunStopped, UserError
from simfle.process import OWN_CORES, loading
from simfle.slurm import record
from simfle.slurm.config import ClusterConfig
from simfle.slurm.record import End
from simfle.stopping import StopFlag
from simfle.terminal import log_to_stderr, say

# Exit codes, after sysexits.h, for people and logs: the end of the job reads the tasks' exit records. A stopped task
# exits with 0, because srun kills all others at the first nonzero exit, and rank 0 may still be saving.
CODES = {record.DONE: 0, record.SPARE: 0, record.STOPPED: 0, record.REFUSED: 65, record.BUG: 70, record.LOST: 69}
PATIENCE = 120.0  # maximum seconds to wait for a former holder of the run folder, after its node was lost
PORTS = 20000, 12000  # first port and number of ports: above the usual services, below Linux's ephemeral ports


@dataclass(frozen=True)
class Place:
    """This task in its job. start: 0, then one more with each requeue."""

    job: str
    start: int
    rank: int
    size: int
    local_rank: int
    local_size: int
    nodes: tuple[str, ...]

    @property
    def host(self) -> str:
        return os.environ.get("SLURMD_NODENAME", self.nodes[0])

    @property
    def port(self) -> int:
        """Port of the rendezvous: derived from the job, another one after each requeue (the old one may still be
        bound).
        """
        number = int("".join(filter(str.isdigit, self.job)) or 0)
        return PORTS[0] + (number * 61 + self.start) % PORTS[1]


def find_place() -> Place:
    """Read the environment that submitit reads, of Slurm or its local executor."""
    from submitit.core.job_environment import JobEnvironment

    task = JobEnvironment()
    nodes = tuple(task.hostnames)
    start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    local_size = max(1, task.num_tasks // task.num_nodes)
    return Place(task.job_id, start, task.global_rank, task.num_tasks, task.local_rank, local_size, nodes)


def pretrain_task(folder: str) -> None:
    """Pretrain as one process of the job in `folder`; end the process with a code of CODES."""
    job = Path(folder)
    log_to_stderr()
    faulthandler.register(signal.SIGQUIT)  # stacks of all threads, to the log: scancel --signal=QUIT
    with StopFlag() as stop:  # before torch is imported: submitit's handlers would requeue without saving, as a failure
        place = find_place()
        cluster = load(ClusterConfig, job / "cluster.yaml")
        config = load(PretrainConfig, job / "config.yaml")
        with ending(job, place):
            usable = usable_tasks(place, cluster, config.train.global_batch)
            if place.rank >= usable:
                raise Spare(f"{place.size} processes cannot share {config.train.global_batch} samples; using {usable}")
            place = replace(place, size=usable)
            config = fit(config, place, cluster)
            join(place, cluster)
            announce(job, place, config, cluster)
            with loading():
                from simfle.train.claim import JobStart
                from simfle.train.trainer import Surroundings, pretrain

            def hung(words: str) -> None:
                record.write_end(job, place.start, End(place.rank, place.host, record.HUNG, words))

            lead = float(cluster.signal_seconds)
            start = JobStart(place.job, place.start)
            pretrain(config, Surroundings(stop, PATIENCE if place.start else 0.0, lead, hung, start))


class Spare(Exception):  # noqa: N818 - an expected exit, not an error
    """This task is not needed for the global batch."""


def usable_tasks(place: Place, cluster: ClusterConfig, global_batch: int) -> int:
    """Return the maximum number of tasks, on whole nodes, that can share the global batch.

    Raises:
        UserError: none of the allowed numbers of nodes can, or requeues are used up.
    """
    if place.start > cluster.max_requeues:
        raise UserError(
            f"requeued {place.start} times, max_requeues={cluster.max_requeues}. Fix: submit the run again."
        )
    here = len(place.nodes)
    least = cluster.min_nodes or here
    for nodes in range(here, least - 1, -1):
        tasks = nodes * place.local_size
        if global_batch % tasks == 0 and global_batch // tasks >= 2:
            return tasks
    raise UserError(
        f"train.global_batch={global_batch}: cannot be shared by {place.local_size} processes on each of {least} to "
        f"{here} nodes. Fix: use a batch that these numbers divide, or other numbers of nodes."
    )


def fit(config: PretrainConfig, place: Place, cluster: ClusterConfig) -> PretrainConfig:
    """Adapt the config to the number of processes: a micro-batch that divides the share of each, node-local caches.

    Raises:
        UserError: there is no such micro-batch, or no folder for caches.
    """
    data = config.data
    scratch = scratch_folder(cluster)
    if scratch is not None and not data.cache:
        data = replace(data, cache=str(scratch / "shards"))
    micro = fit_micro_batch(config.train, place.size)
    return replace(config, train=replace(config.train, micro_batch=micro), data=data)


def fit_micro_batch(train: TrainConfig, processes: int) -> int:
    """Return the largest micro-batch, up to the configured one, that divides the share of each process.

    Raises:
        UserError: there is none of 2 samples or more.
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


def scratch_folder(cluster: ClusterConfig) -> Path | None:
    """Create and return the node-local folder for caches; None if none is configured.

    Raises:
        UserError: it cannot be created, or uses an environment variable that is not set in this job.
    """
    if not cluster.scratch:
        return None
    text = os.path.expandvars(cluster.scratch)
    if "$" in text:
        raise UserError(f"cluster.scratch={cluster.scratch}: uses an environment variable that is not set in this job")
    folder = Path(text) / "simfle"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cluster.scratch={folder}: cannot be created: {error.strerror}") from None
    return folder


def join(place: Place, cluster: ClusterConfig) -> None:
    """Set the environment of `simfle.runtime` and libraries: ranks, rendezvous, caches, cores."""
    own = {"RANK": place.rank, "WORLD_SIZE": place.size, "LOCAL_RANK": place.local_rank}
    own |= {"LOCAL_WORLD_SIZE": place.local_size}
    os.environ.update({name: str(value) for name, value in own.items()})
    os.environ["MASTER_ADDR"] = rendezvous_address(place)
    os.environ["MASTER_PORT"] = str(place.port)
    scratch = scratch_folder(cluster)
    if scratch is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(scratch / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(scratch / "triton"))
    bind_cores(place)


def rendezvous_address(place: Place) -> str:
    """Return the first node's name, or, if the network cannot resolve it, the address that srun was started from."""
    if len(place.nodes) == 1:
        return "127.0.0.1"
    try:
        socket.getaddrinfo(place.nodes[0], place.port)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", place.nodes[0])
    return place.nodes[0]


def bind_cores(place: Place) -> None:
    """Bind each process of a node to separate cores if Slurm has not (no task/affinity plugin, no cpus-per-task).

    OWN_CORES and, if the user has not set it, OMP_NUM_THREADS record this: cores must not be divided again.
    """
    cores = sorted(os.sched_getaffinity(0))
    unbound = os.environ.get("SLURM_CPU_BIND_TYPE", "none") in ("none", "")
    if unbound and place.local_size > 1:
        share = len(cores) // place.local_size
        if not share:
            return  # more processes than cores
        cores = cores[place.local_rank * share : (place.local_rank + 1) * share]
        os.sched_setaffinity(0, cores)
    os.environ[OWN_CORES] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(len(cores)))


def announce(job: Path, place: Place, config: PretrainConfig, cluster: ClusterConfig) -> None:
    """Record and print the job's nodes and processes, once for all tasks."""
    if place.rank:
        return
    facts = {
        "job": place.job,
        "folder": job.name,
        "start": place.start,
        "nodes": list(place.nodes),
        "processes": place.size,
    }
    record.tell(Path(config.train.run), "started", **facts)
    words = f"job {place.job}, start {place.start}: {place.size} processes on {', '.join(place.nodes)}"
    if len(place.nodes) < cluster.nodes:
        words += f"; requested {cluster.nodes} nodes, at least {cluster.min_nodes}"
    say(words)


@contextmanager
def ending(job: Path, place: Place) -> Iterator[None]:
    """Record how this task ended, print it in one line, and exit with its code. Only bugs print a traceback."""
    kind, words = record.DONE, ""
    try:
        yield
    except Spare as spare:
        kind, words = record.SPARE, str(spare)
    except RunStopped as stopped:
        kind, words = record.STOPPED if stopped.by_signal else record.DONE, str(stopped)
    except UserError as error:
        kind, words = record.REFUSED, str(error)
    except Exception as error:  # noqa: BLE001 - last handler: recorded, and the process exits
        kind = record.LOST if is_loss_of_peers(error) else record.BUG
        words = str(error).splitlines()[0] if str(error) else ""
        words = words if isinstance(error, FolderHeld) else f"{type(error).__name__}: {words}"
        if kind == record.BUG:
            traceback.print_exc()
    try:
        record.write_end(job, place.start, End(place.rank, place.host, kind, words))
    except OSError as error:  # the job's folder was deleted, or its disk is full: only the log below remains
        say(f"error: {job}: cannot record how this process ended: {error.strerror}")
    if words:
        say(f"{'' if kind in (record.STOPPED, record.SPARE) else 'error: '}{words}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if kind != record.DONE:
        os._exit(CODES[kind])  # skip destructors of a broken process group, which may wait for dead processes


def is_loss_of_peers(error: Exception) -> bool:
    """Whether a torch error means that other processes or the GPU are gone; gloo raises a plain RuntimeError."""
    import torch.distributed as dist

    from simfle.device import device_failed

    if isinstance(error, PeersMissing | dist.DistError | ConnectionError) or device_failed(error):
        return True
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset", "gloo", "nccl", "broken pipe", "store", "timed out")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
