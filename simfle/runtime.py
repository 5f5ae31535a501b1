"""Processes, devices and the DeepSpeed engine: everything a run takes from its surroundings."""

import ctypes
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from simfle import zero
from simfle.config import OptimConfig, TrainConfig
from simfle.device import kernels, memory_bytes, settle_accelerator
from simfle.errors import AgreedError, PeersMissing, RunStopped, UserError
from simfle.optim import STATES
from simfle.process import LAUNCHER

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # linux/prctl.h
FOR_LIBRARIES = ("DS_ACCELERATOR", "CUBLAS_WORKSPACE_CONFIG")  # a process started later may use another device
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
AUTO = -1  # train.micro_batch=auto: what fits is found by trying, simfle.train.fitting
BUCKET = 50_000_000  # gradients that are reduced together


@dataclass(frozen=True)
class World:
    """This process among all: rank of size, local_rank of local_size on this machine, and its device."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is shared: global_batch = processes * accumulation * micro_batch."""

    global_batch: int
    micro_batch: int
    accumulation: int

    @property
    def processes(self) -> int:
        return self.global_batch // (self.accumulation * self.micro_batch)


def plan_batch(config: TrainConfig, processes: int) -> BatchPlan:
    """Micro-batch and accumulation for so many processes.

    Raises:
        UserError: the global batch cannot be shared equally.
    """
    total, micro = config.global_batch, config.micro_batch
    if total < 1 or total % processes:
        raise UserError(f"train.global_batch={total} is not divisible by {processes} processes")
    share = total // processes
    micro = share if micro in (0, AUTO) else micro
    if micro < 1 or share % micro:
        raise UserError(
            f"train.micro_batch={micro} does not divide the {share} samples that each of {processes} processes takes "
            f"of train.global_batch={total}"
        )
    if micro < 2:
        raise UserError(f"train.micro_batch={micro}: BatchNorm needs at least 2 samples per process and forward")
    return BatchPlan(total, micro, share // micro)


def arithmetic_threads(local_size: int) -> int:
    """Threads of this process for arithmetic on the CPU: its part of the cores that `local_size` processes share.

    OMP_NUM_THREADS is what one process shall take: whoever set it, the user or a launcher, has divided already.
    """
    known = torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, min(known, int(asked[:9])) if asked.isdecimal() else known // local_size)


@contextmanager
def processes(config: TrainConfig) -> Iterator[World]:
    """Join the processes that a launcher started (accelerate, torchrun, Slurm), or be the only one.

    Raises:
        UserError: a GPU was asked for that is not there, or the launcher started fewer processes than it was told to.
    """
    changes = nullcontext() if "WORLD_SIZE" in os.environ else put_back()
    with changes, _repeatable(config.deterministic), _joined(config) as world:
        yield world


@contextmanager
def put_back() -> Iterator[None]:
    """What a run or an evaluation changes in its process, which may be a notebook's and goes on."""
    set_before = set(os.environ)
    random = torch.get_rng_state()
    hook = sys.excepthook  # torch's writes the number of the process before each line
    try:
        yield
    finally:
        for name in (*LAUNCHED, *FOR_LIBRARIES):
            if name not in set_before:
                os.environ.pop(name, None)
        sys.excepthook = hook
        torch.set_rng_state(random)


@contextmanager
def _repeatable(wanted: bool) -> Iterator[None]:
    """Kernels that add in one order, where torch has such; a warning names an operator that has none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _joined(config: TrainConfig) -> Iterator[World]:
    environment = _launched()
    if "TORCHELASTIC_RUN_ID" in os.environ or LAUNCHER in os.environ:
        _leave_with_launcher()
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if config.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"train.device is {config.device!r}; known are auto, cpu and cuda")
    if cuda and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch sees no GPU; take train.device=cpu or mend the driver")
    device = torch.device("cuda", _gpu(environment["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        os.environ["LOCAL_RANK"] = str(device.index)  # by which DeepSpeed picks its GPU, too
    _start_group(device, config.timeout)
    import deepspeed  # whose accelerator is settled now

    world = World(
        dist.get_rank(), dist.get_world_size(), environment["LOCAL_RANK"], environment["LOCAL_WORLD_SIZE"], device
    )
    if world.size != environment["WORLD_SIZE"]:
        raise RuntimeError(f"launched as one of {environment['WORLD_SIZE']}, but the process group has {world.size}")
    together = True
    try:
        with kernels(device, deterministic=config.deterministic):
            yield world
    except (AgreedError, RunStopped):
        raise
    except BaseException:
        together = world.size == 1
        raise
    finally:
        # NCCL's end waits for work under way, for ever where this process fails alone: its error would never be told.
        if together or device.type == "cpu":
            deepspeed.comm.destroy_process_group()  # and what DeepSpeed keeps of it: a notebook may start another run


def _leave_with_launcher() -> None:
    """SIGTERM to this process when its launcher dies: it saves and ends, and does not hold the run's folder unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):  # it has died already
        signal.raise_signal(signal.SIGTERM)


def _gpu(local_rank: int) -> int:
    """The GPU of a process: by its number on this machine, or the only one that the cluster lets it see."""
    seen = torch.cuda.device_count()
    if local_rank < seen:
        return local_rank
    if seen == 1 and "SLURM_PROCID" in os.environ:  # --gpus-per-task: each task sees its own as number 0
        return 0
    raise UserError(
        f"process {local_rank} of this machine finds {seen} GPUs: start as many processes as there are GPUs"
    )


def _launched() -> dict[str, int]:
    """What the launcher put into the environment; a single process gets a world of its own."""
    under_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if "WORLD_SIZE" not in os.environ and under_accelerate and "MASTER_PORT" in os.environ:
        raise UserError(
            "accelerate was told to start several processes but started this one only, as it does without a GPU; "
            "add --use_deepspeed: accelerate launch --use_deepspeed --num_processes 2 -m simfle pretrain ..."
        )
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # any that is free when it listens
    os.environ.setdefault("LOCAL_WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        found = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the launcher's environment is incomplete: {error}; set RANK and WORLD_SIZE, or none"
        ) from None
    _check_launched(found)
    return found


def _check_launched(found: dict[str, int]) -> None:
    """Refuse what torch would wait for without end, or answer with a traceback: maybe a shell kept it from another job.

    Raises:
        UserError: the variable, its value, and what it can be.
    """
    sound = 0 <= found["RANK"] < found["WORLD_SIZE"] and found["LOCAL_RANK"] >= 0 and found["LOCAL_WORLD_SIZE"] >= 1
    if not sound:
        told = " ".join(f"{name}={value}" for name, value in found.items())
        raise UserError(
            f"{told}: processes are numbered from 0 to WORLD_SIZE - 1. Fix: start all of them with one launcher, or "
            "unset RANK and WORLD_SIZE to start a single process"
        )
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) >= 1 << 16:
        raise UserError(
            f"MASTER_ADDR={address} MASTER_PORT={port}: no address with a port from 0 to 65535. Fix: set both to "
            "those of the main process, or unset RANK and WORLD_SIZE to start a single process"
        )


def _start_group(device: torch.device, seconds: float) -> None:
    # DeepSpeed picks its accelerator from this variable, and would take CUDA from a CUDA build of torch without a GPU.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    with _interrupts_held():  # half of it imported, it could not be imported again
        import deepspeed

    settle_accelerator(device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # warns of every optimizer that is not its own
    # On a CPU it would compile a C++ all-reduce at the first start (25 s, and a compiler needed); gloo does that work.
    # Set without reading what is there: that would try out all of its extensions, with a compiler and files in /tmp.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The watchdog ends a hanging run after `seconds` with a better message; this is for the time before it watches.
    limit = timedelta(seconds=2 * seconds) if seconds else timedelta(days=1)
    try:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=limit)
    except (dist.DistStoreError, dist.DistNetworkError) as error:  # of the main process, of the others
        words = str(error).splitlines()[0]
        raise PeersMissing(
            f"the processes of this run did not come together within {limit}: {words}; start all of them, "
            "with the same MASTER_ADDR and MASTER_PORT"
        ) from None


def start_engine(
    model: nn.Module, optimizer: torch.optim.Optimizer, plan: BatchPlan, train: TrainConfig, optim: OptimConfig
) -> Any:
    """Hand the model to DeepSpeed: ZeRO, autocast, accumulation and clipping from our configuration alone."""
    import deepspeed

    for parameter in model.parameters():  # of a model in channels_last they are not, and ZeRO flattens them as views
        parameter.data = parameter.data.contiguous()
    train = settled(train, optim, plan, model)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(plan, train, optim), dist_init_required=False
    )
    if engine.dp_world_size != dist.get_world_size():
        raise RuntimeError(f"DeepSpeed sees {engine.dp_world_size} processes, torch {dist.get_world_size()}")
    if dist.get_world_size() == 1:
        engine.enable_backward_allreduce = False  # it would copy all gradients to a bucket and back, for nobody
    return engine


def settled(train: TrainConfig, optim: OptimConfig, plan: BatchPlan, model: nn.Module) -> TrainConfig:
    """The configuration with the ZeRO stage that runs, the same on all processes."""
    if plan.processes > 1 and train.zero_stage == zero.AUTO:
        parameters = list(model.parameters())
        trained, frozen = (
            sum(each.nbytes for each in parameters if each.requires_grad == moved) for moved in (True, False)
        )
        memory = torch.tensor(memory_bytes(parameters[0].device), device=parameters[0].device)
        dist.all_reduce(memory, dist.ReduceOp.MIN)
        held = zero.held_bytes(trained, frozen, len(STATES[optim.name]))
        stage = zero.choose(train, optim, plan.processes, held, memory.item())
        log.info("train.zero_stage=auto: %d; %s", stage.number, stage.reason)
    else:
        stage = zero.choose(train, optim, plan.processes, 0, 0)
    return replace(train, zero_stage=stage.number)


def deepspeed_config(plan: BatchPlan, train: TrainConfig, optim: OptimConfig) -> dict[str, Any]:
    """Our settings in DeepSpeed's words, the stage settled. Never `bf16.enabled`: it leaves out BatchNorm's buffers."""
    return {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": optim.clip,
        "zero_optimization": {
            "stage": train.zero_stage,
            # Sent while backward goes on, in parts of 200 MB: the default is 2 GB, and two
            # such buffers are kept for each type of gradient.
            "overlap_comm": True,
            "reduce_bucket_size": BUCKET,
            # The norm serves clipping alone: it would make the host wait for the GPU in each step, and skip without a
            # word a step whose gradients are not finite, which one process does not.
            **({"compute_grad_norm": False} if train.zero_stage in (1, 2) and not optim.clip else {}),
            # Every parameter partitioned: the EMA works on partitions, which persistent parameters would not follow.
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,  # SGD and AdamW are elementwise, as flattened parameters require
        "torch_autocast": {"enabled": train.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 10**9,
        # Its throughput timer, on by default, makes the host wait for the GPU at each forward and each step.
        "timers": {"throughput": {"enabled": False}},
    }


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C takes effect at the end."""
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
