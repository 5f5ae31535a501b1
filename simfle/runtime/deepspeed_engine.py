"""Start DeepSpeed: its configuration, and the ZeRO stage of a run."""

import logging
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from simfle.config.schema import OptimConfig, TrainConfig
from simfle.optim import STATES
from simfle.runtime import zero_stage
from simfle.runtime.device import memory_bytes
from simfle.runtime.distributed import BatchLayout

log = logging.getLogger(__name__)
BUCKET = 50_000_000  # elements of a gradient bucket


def init_deepspeed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    layout: BatchLayout,
    train: TrainConfig,
    optim: OptimConfig,
    *,
    stage: int | None = None,
) -> Any:
    """Initialize DeepSpeed with ZeRO, autocast, accumulation and clipping from the run's configuration alone.

    stage: ZeRO stage in place of the effective one, which is 0 for one process. Benchmarks use it to measure its cost.
    """
    import deepspeed

    # ZeRO flattens views, and a broadcast needs plain strides instead of channels_last.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    train = with_zero_stage(train, optim, layout, model) if stage is None else replace(train, zero_stage=stage)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(layout, train, optim), dist_init_required=False
    )
    if train.zero_stage == 0:
        # Images are in channels_last. With plain weights, a GPU copies a weight in each convolution, and its gradient.
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if engine.dp_world_size != dist.get_world_size():
        raise RuntimeError(f"DeepSpeed sees {engine.dp_world_size} processes, torch {dist.get_world_size()}")
    if dist.get_world_size() == 1 and not stage:
        engine.enable_backward_allreduce = False  # it would copy all gradients to a bucket and back, to no effect
    return engine


def with_zero_stage(train: TrainConfig, optim: OptimConfig, plan: BatchLayout, model: nn.Module) -> TrainConfig:
    """Return the configuration with the effective ZeRO stage, the same on all processes."""
    if plan.processes > 1 and train.zero_stage == zero_stage.AUTO:
        parameters = list(model.parameters())
        trained, frozen = (
            sum(each.nbytes for each in parameters if each.requires_grad == moved) for moved in (True, False)
        )
        memory = torch.tensor(memory_bytes(parameters[0].device), device=parameters[0].device)
        dist.all_reduce(memory, dist.ReduceOp.MIN)
        held = zero_stage.held_bytes(trained, frozen, len(STATES[optim.name]))
        stage = zero_stage.choose_zero_stage(train, optim, plan.processes, held, memory.item())
        log.info("train.zero_stage=auto: %d; %s", stage.number, stage.reason)
    else:
        stage = zero_stage.choose_zero_stage(train, optim, plan.processes, 0, 0)
    return replace(train, zero_stage=stage.number)


def deepspeed_config(layout: BatchLayout, train: TrainConfig, optim: OptimConfig) -> dict[str, Any]:
    """Translate the configuration with the given stage. Never set `bf16.enabled`: it skips BatchNorm buffers."""
    return {
        "train_batch_size": layout.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.grad_accum_steps,
        "gradient_clipping": optim.max_grad_norm,
        "zero_optimization": {
            "stage": train.zero_stage,
            # Gradients are reduced during the backward pass in buckets of 200 MB. The default is 2 GB, and DeepSpeed
            # keeps two such buffers for each type of gradient.
            "overlap_comm": True,
            "reduce_bucket_size": BUCKET,
            # The norm is only needed for clipping. Computing it makes the host wait for the GPU in each step, and skips
            # a step with non-finite gradients silently, which a single process does not.
            **({"compute_grad_norm": False} if train.zero_stage in (1, 2) and not optim.max_grad_norm else {}),
            # Partition every parameter: the EMA works on partitions, and persistent parameters are not partitioned.
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,  # SGD and AdamW are elementwise, as flattened parameters require
        "torch_autocast": {"enabled": train.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 10**9,
        # DeepSpeed's throughput timer is on by default and makes the host wait for the GPU at each forward and step.
        "timers": {"throughput": {"enabled": False}},
    }
