"""Environment of a run: processes, devices and the DeepSpeed engine."""

import ctypes
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from simfle.config.schema import TrainConfig
from simfle.errors import CollectiveError, PeerLostError, RunStopped, UserError
from simfle.runtime.device import kernels, set_ds_accelerator
from simfle.runtime.entrypoint import LAUNCHER

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
FOR_LIBRARIES = ("DS_ACCELERATOR", "CUBLAS_WORKSPACE_CONFIG")  # removed at exit: a later run may use another device
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
AUTO = -1  # train.micro_batch=auto: found by trial, see simfle.train.auto_batch


@dataclass(frozen=True)
class World:
    """Process group as seen by this process: rank of world_size, local_rank of local_world_size on this machine, and
    its device."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class BatchLayout:
    """Split of a global batch: global_batch = processes * grad_accum_steps * micro_batch."""

    global_batch: int
    micro_batch: int
    grad_accum_steps: int

    @property
    def processes(self) -> int:
        return self.global_batch // (self.grad_accum_steps * self.micro_batch)


def compute_batch_layout(config: TrainConfig, processes: int) -> BatchLayout:
    """Compute the micro-batch size and the gradient accumulation steps for the number of processes.

    Raises:
        UserError: If the global batch cannot be split equally.
    """
    total, micro = config.global_batch, config.micro_batch
    if total % processes:
        raise UserError(
            f"train.global_batch={total}: not divisible by {processes} processes. "
            f"Fix: choose a multiple of {processes}."
        )
    share = total // processes
    micro = share if micro in (0, AUTO) else micro
    if micro < 1 or share % micro:
        raise UserError(
            f"train.micro_batch={micro}: does not divide the {share} samples per process of "
            f"train.global_batch={total} and {processes} processes. Fix: choose a divisor of {share}."
        )
    if micro < 2:
        raise UserError(
            f"train.micro_batch={micro}: BatchNorm needs at least 2 samples per process and forward pass. "
            "Fix: use fewer processes or a larger batch."
        )
    return BatchLayout(total, micro, share // micro)


def intra_op_threads(local_size: int) -> int:
    """Return the number of CPU compute threads of this process: its share of the machine's cores.

    OMP_NUM_THREADS is used as the number per process, because the user or the launcher has already divided it.
    """
    known = torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, min(known, int(asked[:9])) if asked.isdecimal() else known // local_size)


@contextmanager
def init_distributed(config: TrainConfig) -> Iterator[World]:
    """Join the processes that a launcher started (accelerate, torchrun, Slurm), or run as a single process.

    Raises:
        UserError: If a requested GPU is missing, or the launcher started fewer processes than requested.
    """
    changes = nullcontext() if "WORLD_SIZE" in os.environ else preserve_process_state()
    with changes, _deterministic_kernels(config.deterministic), _process_group(config) as world:
        yield world


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore the process state that a run or an evaluation changes; the process may be a notebook's."""
    set_before = set(os.environ)
    random = torch.get_rng_state()
    hook = sys.excepthook  # torch's hook prefixes each line with the rank
    try:
        yield
    finally:
        for name in (*LAUNCHED, *FOR_LIBRARIES):
            if name not in set_before:
                os.environ.pop(name, None)
        sys.excepthook = hook
        torch.set_rng_state(random)


@contextmanager
def _deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Use kernels with a fixed order of summation if torch has them; a warning names an operator without one."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _process_group(config: TrainConfig) -> Iterator[World]:
    environment = _launched()
    if "TORCHELASTIC_RUN_ID" in os.environ or LAUNCHER in os.environ:
        _leave_with_launcher()
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise UserError("train.device=cuda: torch sees no GPU. Fix: set train.device=cpu, or run simfle doctor.")
    device = torch.device("cuda", _gpu(environment["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed also picks its GPU by this variable
    _start_group(device, config.hang_timeout)
    import deepspeed  # imported after its accelerator is set

    world = World(
        dist.get_rank(), dist.get_world_size(), environment["LOCAL_RANK"], environment["LOCAL_WORLD_SIZE"], device
    )
    if world.world_size != environment["WORLD_SIZE"]:
        raise RuntimeError(
            f"launched as one of {environment['WORLD_SIZE']}, but the process group has {world.world_size}"
        )
    together = True
    try:
        with kernels(device, deterministic=config.deterministic):
            yield world
    except (CollectiveError, RunStopped):
        raise
    except BaseException:
        together = world.world_size == 1
        raise
    finally:
        # Destroying NCCL waits for pending work. If only this process fails, it would wait forever and report no error.
        if together or device.type == "cpu":
            deepspeed.comm.destroy_process_group()  # also clears DeepSpeed's state: a notebook may start another run


def _leave_with_launcher() -> None:
    """Send SIGTERM to this process when its launcher dies: it saves, exits and releases the run folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):  # the launcher has died already
        signal.raise_signal(signal.SIGTERM)


def _gpu(local_rank: int) -> int:
    """Return the GPU of a process: by local rank, or the only GPU that the cluster makes visible."""
    seen = torch.cuda.device_count()
    if local_rank < seen:
        return local_rank
    if seen == 1 and "SLURM_PROCID" in os.environ:  # --gpus-per-task: each task sees its GPU as number 0
        return 0
    raise UserError(f"process {local_rank} of this machine: torch sees {seen} GPUs. Fix: start one process per GPU.")


def _launched() -> dict[str, int]:
    """Read the launcher's environment variables; set those of a single process if there are none."""
    under_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if "WORLD_SIZE" not in os.environ and under_accelerate and "MASTER_PORT" in os.environ:
        raise UserError(
            "accelerate was configured for several processes but started only this one, as it does without a GPU. "
            "Fix: add --use_deepspeed: accelerate launch --use_deepspeed --num_processes 2 -m simfle pretrain ..."
        )
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # any free port
    os.environ.setdefault("LOCAL_WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        found = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the launcher's environment is incomplete: {error}. Fix: set both RANK and WORLD_SIZE, or neither."
        ) from None
    _check_launched(found)
    return found


def _check_launched(found: dict[str, int]) -> None:
    """Raise UserError for variables on which torch would wait forever or fail, such as those of another job's shell.

    Raises:
        UserError: If a variable is invalid. The error names the variable, its value and the allowed values.
    """
    sound = 0 <= found["RANK"] < found["WORLD_SIZE"] and found["LOCAL_RANK"] >= 0 and found["LOCAL_WORLD_SIZE"] >= 1
    if not sound:
        told = " ".join(f"{name}={value}" for name, value in found.items())
        raise UserError(
            f"{told}: ranks range from 0 to WORLD_SIZE - 1. Fix: start all processes with one launcher, or "
            "unset RANK and WORLD_SIZE to start a single process."
        )
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) >= 1 << 16:
        raise UserError(
            f"MASTER_ADDR={address} MASTER_PORT={port}: not an address and a port from 0 to 65535. Fix: set both to "
            "those of the main process, or unset RANK and WORLD_SIZE to start a single process."
        )


def _start_group(device: torch.device, seconds: float) -> None:
    # DeepSpeed picks its accelerator from this variable. It would pick CUDA for a CUDA build of torch without a GPU.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    with _interrupts_held():  # DeepSpeed cannot be imported again after an interrupted import
        import deepspeed

    set_ds_accelerator(device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # DeepSpeed warns about every optimizer of another library
    # On a CPU DeepSpeed would compile a C++ all-reduce at the first start (25 s, needs a compiler); gloo does the same.
    # It is set without reading it first: a read would try all extensions, with a compiler and files in /tmp.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The watchdog ends a hanging run after `seconds` with a better message. This limit covers the time before it
    # starts.
    limit = timedelta(seconds=2 * seconds) if seconds else timedelta(days=1)
    try:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=limit)
    except (dist.DistStoreError, dist.DistNetworkError) as error:  # main process; others
        words = str(error).splitlines()[0]
        raise PeerLostError(
            f"the processes of this run did not connect within {limit}: {words}. Fix: start all of them "
            "with the same MASTER_ADDR and MASTER_PORT."
        ) from None


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
