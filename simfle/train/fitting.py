"""train.micro_batch=auto: the most samples per forward that fit into the GPU's memory, found by trying."""

import gc
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from shards.files import read_bytes
from shards.plain import parse_object
from simfle.batch import Batch
from simfle.config import PretrainConfig
from simfle.device import out_of_memory
from simfle.errors import PeersMissing, UserError
from simfle.models.collect import alone
from simfle.models.methods import build_method
from simfle.optim import build_optimizer
from simfle.runtime import AUTO, World, plan_batch
from simfle.train.checkpoint import complete
from simfle.train.state import trained

log = logging.getLogger(__name__)
FAILED = -1.0  # the answer of a process whose trial failed for another reason than memory
LEAST = 2  # samples that BatchNorm needs
SPARE = 0.92  # share of the free memory that a trial may take: NCCL, cuDNN's workspaces and fragments need the rest
BUCKETS = 8e8  # bytes of DeepSpeed's buckets, two of each of two types, which a trial does not have


def fitted(config: PretrainConfig, world: World) -> PretrainConfig:
    """The configuration with a micro-batch for auto; any other as it is. The global batch stays.

    A run that goes on with as many processes of the same GPUs keeps the micro-batch that it found first: with another
    one BatchNorm would see other samples together. Without a GPU, auto is each process's whole share: main memory is
    not what holds a CPU up.

    Raises:
        UserError: not even the smallest micro-batch fits.
    """
    if config.train.micro_batch != AUTO:
        return config
    if world.device.type != "cuda":
        return replace(config, train=replace(config.train, micro_batch=0))
    share = plan_batch(config.train, world.size).micro_batch  # that of auto is the whole share
    before = [kept(Path(config.train.run), world.size, device_name(world.device), share)]
    dist.broadcast_object_list(before, src=0)
    if before[0]:
        log.info("train.micro_batch=auto: %d, as this run found before", before[0])
        return replace(config, train=replace(config.train, micro_batch=before[0]))

    def fits(micro: int) -> bool:
        """On all processes. One that fails otherwise tells the others, which would wait for its answer."""
        failure: Exception | None = None
        try:
            here = float(_fits_here(config, micro, world.device))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised below
            failure, here = error, FAILED
        answer = torch.tensor([here], device=world.device)
        dist.all_reduce(answer, dist.ReduceOp.MIN)
        if failure is not None:
            raise failure
        if answer.item() == FAILED:
            raise PeersMissing(f"train.micro_batch=auto: another process failed as it tried {micro} samples")
        return bool(answer.item())

    micro = largest(share, fits)
    log.info("train.micro_batch=auto: %d of each process's %d samples fit at once", micro, share)
    return replace(config, train=replace(config.train, micro_batch=micro))


def kept(run: Path, processes: int, device: str, share: int) -> int:
    """The micro-batch that RUN/run.json tells of so many processes on this kind of device; 0: of others, or none.

    Before its first checkpoint a folder may still hold another configuration's.
    """
    if not complete(run):
        return 0
    try:
        facts = parse_object(read_bytes(run / "run.json"))
    except (OSError, ValueError):
        return 0
    micro = facts.get("micro_batch")
    same = (facts.get("processes"), facts.get("device")) == (processes, device)
    return micro if same and type(micro) is int and micro >= LEAST and share % micro == 0 else 0


def device_name(device: torch.device) -> str:
    """The GPU's name and memory, or cpu."""
    if device.type != "cuda":
        return device.type
    about = torch.cuda.get_device_properties(device)
    return f"{about.name}, {about.total_memory >> 20} MiB"


def largest(share: int, fits: Callable[[int], bool]) -> int:
    """The largest divisor of `share`, at least 2, that fits. If one fits, smaller ones do: it is found by halving.

    Raises:
        UserError: none fits, or `share` has no such divisor.
    """
    divisors = [number for number in range(LEAST, share + 1) if share % number == 0]
    low, high = 0, len(divisors)  # divisors[:low] fit, divisors[high:] do not
    while low < high:
        middle = (low + high) // 2
        if fits(divisors[middle]):
            low = middle + 1
        else:
            high = middle
    if not low:
        raise UserError(
            f"train.micro_batch=auto: not even {LEAST} samples fit into this GPU; take smaller views, a smaller "
            "model.backbone or model.facemae, or another GPU"
        )
    return divisors[low - 1]


def _fits_here(config: PretrainConfig, micro: int, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        extra = trial(config, micro, device)
        return torch.cuda.max_memory_allocated(device) + extra + BUCKETS < SPARE * free
    except RuntimeError as error:  # cuBLAS, cuDNN and DALI have words of their own for it
        if not out_of_memory(error):
            raise
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def trial(config: PretrainConfig, micro: int, device: torch.device) -> int:
    """One step of `micro` samples without DeepSpeed; bytes of the copies that DeepSpeed would keep beside it.

    These are one of the parameters and one of the gradients, flattened; sharing them among processes (ZeRO) only
    makes them smaller.
    """
    # Compiled it needs rather less, and each trial would take the compiler's minutes.
    plain = replace(config.model, compile=False)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model = build_method(plain, config.views).to(device).train()
    parameters = [parameter for _, parameter in trained(model)]
    optimizer = build_optimizer(parameters, config.optim)
    bf16 = config.train.precision == "bf16"
    with alone(), torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
        loss = model(_batch(config, micro, device))["total"]
    loss.backward()
    optimizer.step()
    return 2 * sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _batch(config: PretrainConfig, micro: int, device: torch.device) -> Batch:
    """Images of noise, laid out as the loader's."""

    def images(side: int) -> torch.Tensor:
        made = torch.randint(0, 256, (micro, 3, side, side), dtype=torch.uint8, device=device)
        return made.contiguous(memory_format=torch.channels_last)

    views, ids = config.views, torch.arange(micro)
    draw = torch.rand(micro, device=device)
    return Batch(images(views.size), images(views.size), images(views.face_size), ids, draw)
