"""What every task of a job runs: from the allocation to a process of the run, and how it ended."""

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

# Exit codes, after sysexits.h, for people and logs: the end of the job reads the words that tasks leave. A stopped task
# leaves with 0, for srun kills all others at the first one that does not, and rank 0 may still be saving.
CODES = {record.DONE: 0, record.SPARE: 0, record.STOPPED: 0, record.REFUSED: 65, record.BUG: 70, record.LOST: 69}
PATIENCE = 120.0  # seconds that a run folder's former holder gets to die, after its node was lost
PORTS = 20000, 12000  # first, and how many: above the usual services, below the ports that Linux hands out


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
        """Of the rendezvous: derived from the job, another one after each requeue (the old may linger)."""
        number = int("".join(filter(str.isdigit, self.job)) or 0)
        return PORTS[0] + (number * 61 + self.start) % PORTS[1]


def find_place() -> Place:
    """From what submitit reads of Slurm's, or its local executor's, environment."""
    from submitit.core.job_environment import JobEnvironment

    task = JobEnvironment()
    nodes = tuple(task.hostnames)
    start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    local_size = max(1, task.num_tasks // task.num_nodes)
    return Place(task.job_id, start, task.global_rank, task.num_tasks, task.local_rank, local_size, nodes)


def pretrain_task(folder: str) -> None:
    """Pretrain as one process of the job in `folder`; ends the process with a code of CODES."""
    job = Path(folder)
    log_to_stderr()
    faulthandler.register(signal.SIGQUIT)  # where every thread is, into the log: scancel --signal=QUIT
    with StopFlag() as stop:  # before torch is loaded: submitit's handlers would requeue without saving, as a failure
        place = find_place()
        cluster = load(ClusterConfig, job / "cluster.yaml")
        config = load(PretrainConfig, job / "config.yaml")
        with ending(job, place):
            usable = usable_tasks(place, cluster, config.train.global_batch)
            if place.rank >= usable:
                raise Spare(f"{place.size} processes cannot share {config.train.global_batch} samples; {usable} do")
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


class Spare(Exception):  # noqa: N818 - an end, no error
    """This task is one too many for the global batch."""


def usable_tasks(place: Place, cluster: ClusterConfig, global_batch: int) -> int:
    """The most tasks, on whole nodes, that can share the global batch.

    Raises:
        UserError: none of the allowed numbers of nodes can, or requeues are used up.
    """
    if place.start > cluster.max_requeues:
        raise UserError(f"requeued {place.start} times, max_requeues={cluster.max_requeues}; submit it again to go on")
    here = len(place.nodes)
    least = cluster.min_nodes or here
    for nodes in range(here, least - 1, -1):
        tasks = nodes * place.local_size
        if global_batch % tasks == 0 and global_batch // tasks >= 2:
            return tasks
    raise UserError(
        f"train.global_batch={global_batch} cannot be shared by {place.local_size} processes on each of {least} to "
        f"{here} nodes; take a batch that these numbers divide, or other numbers of nodes"
    )


def fit(config: PretrainConfig, place: Place, cluster: ClusterConfig) -> PretrainConfig:
    """The config for so many processes: a micro-batch that divides each one's share, caches on the node's own disk.

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
    """The largest micro-batch, at most the configured one, that divides the share of each of so many processes.

    Raises:
        UserError: there is none of 2 samples or more.
    """
    share, most = train.global_batch // processes, train.micro_batch
    if not most or share % most == 0:
        return most
    fitting = [size for size in range(2, min(most, share) + 1) if share % size == 0]
    if not fitting:
        raise UserError(
            f"train.micro_batch={most}: none from 2 to {most} divides the {share} samples that each of {processes} "
            f"processes takes of train.global_batch={train.global_batch}; give a larger one, or another global batch"
        )
    return fitting[-1]


def scratch_folder(cluster: ClusterConfig) -> Path | None:
    """The node-local folder for caches, made if need be; None where none is configured.

    Raises:
        UserError: it cannot be made, or names a variable that the job does not have.
    """
    if not cluster.scratch:
        return None
    text = os.path.expandvars(cluster.scratch)
    if "$" in text:
        raise UserError(f"cluster.scratch: {cluster.scratch} names a variable that this job does not have")
    folder = Path(text) / "simfle"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cluster.scratch: {folder} cannot be made: {error.strerror}") from None
    return folder


def join(place: Place, cluster: ClusterConfig) -> None:
    """Set what `simfle.runtime` and libraries read: ranks, rendezvous, caches, cores."""
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
    """Of the first node: its name, or, where the network does not know it, the address that srun was started from."""
    if len(place.nodes) == 1:
        return "127.0.0.1"
    try:
        socket.getaddrinfo(place.nodes[0], place.port)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", place.nodes[0])
    return place.nodes[0]


def bind_cores(place: Place) -> None:
    """Give each process of a node its own cores, where Slurm has not (no task/affinity plugin, no cpus-per-task).

    OWN_CORES and, if the user has not set it, OMP_NUM_THREADS tell of them: they must not be divided once more.
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
    """Once for all tasks: on what the job runs now."""
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
        words += f"; {cluster.nodes} nodes were asked for, at least {cluster.min_nodes}"
    say(words)


@contextmanager
def ending(job: Path, place: Place) -> Iterator[None]:
    """Keep how this task ended, say it in one line, and leave with its code. A traceback is for our bugs only."""
    kind, words = record.DONE, ""
    try:
        yield
    except Spare as spare:
        kind, words = record.SPARE, str(spare)
    except RunStopped as stopped:
        kind, words = record.STOPPED if stopped.by_signal else record.DONE, str(stopped)
    except UserError as error:
        kind, words = record.REFUSED, str(error)
    except Exception as error:  # noqa: BLE001 - the last one to see it: recorded, and the process ends
        kind = record.LOST if is_loss_of_peers(error) else record.BUG
        words = str(error).splitlines()[0] if str(error) else ""
        words = words if isinstance(error, FolderHeld) else f"{type(error).__name__}: {words}"
        if kind == record.BUG:
            traceback.print_exc()
    try:
        record.write_end(job, place.start, End(place.rank, place.host, kind, words))
    except OSError as error:  # the job's folder was deleted, or its disk is full: what is said below is all there is
        say(f"error: {job}: how this process ended cannot be kept: {error.strerror}")
    if words:
        say(f"{'' if kind in (record.STOPPED, record.SPARE) else 'error: '}{words}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if kind != record.DONE:
        os._exit(CODES[kind])  # not through destructors of a broken process group, which may wait for the dead


def is_loss_of_peers(error: Exception) -> bool:
    """Whether other processes or the GPU are gone; for which torch raises, with gloo, a plain RuntimeError."""
    import torch.distributed as dist

    from simfle.device import device_failed

    if isinstance(error, PeersMissing | dist.DistError | ConnectionError) or device_failed(error):
        return True
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset", "gloo", "nccl", "broken pipe", "store", "timed out")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
