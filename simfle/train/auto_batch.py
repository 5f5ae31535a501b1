"""train.micro_batch=auto: find by trial the largest micro-batch that fits into GPU memory."""

import gc
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from shards.io.atomic import read_bytes
from shards.io.jsonl import loads_object
from simfle.batch import Batch
from simfle.config.schema import PretrainConfig, ViewsConfig
from simfle.errors import PeerLostError, UserError
from simfle.models.layers.all_gather import local_only
from simfle.models.registry import build_method
from simfle.optim import build_optimizer
from simfle.runtime.collective import main_process_value
from simfle.runtime.device import out_of_memory
from simfle.runtime.distributed import AUTO, World, compute_batch_layout
from simfle.train.checkpointing.checkpoint import complete_checkpoints
from simfle.train.checkpointing.state_dict import trainable_parameters

log = logging.getLogger(__name__)
FAILED = -1.0  # answer of a process whose trial failed for a reason other than memory
MIN_MICRO_BATCH = 2  # minimum samples for BatchNorm
SPARE = 0.92  # fraction of the free memory for a trial: the rest is for NCCL, cuDNN's workspaces and fragmentation
BUCKETS = 8e8  # bytes of DeepSpeed's buckets (two of each of two types), which a trial does not allocate


def resolve_micro_batch(config: PretrainConfig, world: World) -> PretrainConfig:
    """Replace train.micro_batch=auto by a number; keep the global batch.

    A resumed run with the same number of processes and the same GPUs keeps its first micro-batch: with another one,
    BatchNorm would normalize other samples together. Without a GPU, auto is the whole share of each process: main
    memory does not limit training on a CPU.

    Raises:
        UserError: If not even the smallest micro-batch fits.
    """
    if config.train.micro_batch != AUTO:
        return config
    if world.device.type != "cuda":
        return replace(config, train=replace(config.train, micro_batch=0))
    share = compute_batch_layout(config.train, world.world_size).micro_batch  # auto plans with the whole share
    run = Path(config.train.run_dir)
    before = main_process_value(previous_micro_batch(run, world.world_size, device_name(world.device), share))
    if before:
        log.info("train.micro_batch=auto: %d, as in the previous start of this run", before)
        return replace(config, train=replace(config.train, micro_batch=before))

    def fits(micro: int) -> bool:
        """Return whether a micro-batch fits on all processes. Other failures are also sent to all processes, because
        all wait for an answer."""
        failure: Exception | None = None
        try:
            here = float(_fits_here(config, micro, world.device))
        except Exception as error:  # noqa: BLE001 - raised again below
            failure, here = error, FAILED
        answer = torch.tensor([here], device=world.device)
        dist.all_reduce(answer, dist.ReduceOp.MIN)
        if failure is not None:
            raise failure
        if answer.item() == FAILED:
            raise PeerLostError(f"train.micro_batch=auto: another process failed when it tried {micro} samples")
        return bool(answer.item())

    micro = largest_fitting_divisor(share, fits)
    log.info("train.micro_batch=auto: %d of %d samples per process fit into memory", micro, share)
    return replace(config, train=replace(config.train, micro_batch=micro))


def previous_micro_batch(run: Path, processes: int, device: str, share: int) -> int:
    """Return the micro-batch in RUN/run.json for the same number of processes and device, or 0 if there is none.

    Before its first checkpoint, a folder may still hold the file of another configuration.
    """
    if not complete_checkpoints(run):
        return 0
    try:
        facts = loads_object(read_bytes(run / "run.json"))
    except (OSError, ValueError):
        return 0
    micro = facts.get("micro_batch")
    same = (facts.get("processes"), facts.get("device")) == (processes, device)
    return micro if same and type(micro) is int and micro >= MIN_MICRO_BATCH and share % micro == 0 else 0


def device_name(device: torch.device) -> str:
    """Return the GPU's name and memory, or cpu."""
    if device.type != "cuda":
        return device.type
    about = torch.cuda.get_device_properties(device)
    return f"{about.name}, {about.total_memory >> 20} MiB"


def largest_fitting_divisor(share: int, fits: Callable[[int], bool]) -> int:
    """Find the largest divisor of `share`, at least 2, that fits, by bisection: divisors below a fitting one fit too.

    Raises:
        UserError: If no micro-batch fits, or `share` has no such divisor.
    """
    divisors = [number for number in range(MIN_MICRO_BATCH, share + 1) if share % number == 0]
    low, high = 0, len(divisors)  # divisors[:low] fit, divisors[high:] do not
    while low < high:
        middle = (low + high) // 2
        if fits(divisors[middle]):
            low = middle + 1
        else:
            high = middle
    if not low:
        raise UserError(
            f"train.micro_batch=auto: not even {MIN_MICRO_BATCH} samples fit into this GPU. Fix: use smaller views, a "
            "smaller model.backbone or model.facemae, or another GPU."
        )
    return divisors[low - 1]


def _fits_here(config: PretrainConfig, micro: int, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        extra = trial_step(config, micro, device)
        return torch.cuda.max_memory_allocated(device) + extra + BUCKETS < SPARE * free
    except RuntimeError as error:  # cuBLAS, cuDNN and DALI report full memory in a plain RuntimeError
        if not out_of_memory(error):
            raise
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def trial_step(config: PretrainConfig, micro: int, device: torch.device) -> int:
    """Run one step of `micro` samples without DeepSpeed; return the bytes of DeepSpeed's additional copies.

    DeepSpeed flattens one copy of the parameters and one of the gradients. Partitioning them across processes (ZeRO)
    only makes these copies smaller.
    """
    # A compiled model needs less memory, but each trial would take minutes to compile.
    plain = replace(config.model, compile="false")
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model = build_method(plain, config.views).to(device).train()
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    optimizer = build_optimizer(parameters, config.optim)
    bf16 = config.train.precision == "bf16"
    with local_only(), torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
        loss = model(_batch(config.views, micro, device))["total"]
    loss.backward()
    optimizer.step()
    return 2 * sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _batch(views: ViewsConfig, micro: int, device: torch.device) -> Batch:
    """Create a batch of noise with the layout of the loader's batches."""

    def images(side: int) -> torch.Tensor:
        made = torch.randint(0, 256, (micro, 3, side, side), dtype=torch.uint8, device=device)
        return made.contiguous(memory_format=torch.channels_last)

    ids = torch.arange(micro)
    draw = torch.rand(micro, device=device)
    return Batch(images(views.size), images(views.size), images(views.face_size), ids, draw)
