"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from simfle.config import OptimConfig

STATES = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
"""Tensors that each optimizer keeps per parameter, shaped like it: what a checkpoint holds beside the weights."""


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over `parameters`; `learning_rate` gives the rate, set before each step.

    Fused: one pass over parameter, gradient and state instead of one for each operation.
    """
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    if config.name == "adamw":
        first, second = config.betas
        return torch.optim.AdamW(
            parameters, lr=0.0, betas=(first, second), weight_decay=config.weight_decay, fused=True
        )
    raise ValueError(f"no optimizer {config.name!r}")


def learning_rate(step: int, total_steps: int, global_batch: int, config: OptimConfig) -> float:
    """Linear warm-up, then half a cosine to 0: the rate of the step numbered `step`, counted from 0.

    Scaled linearly with the global batch (Goyal et al. 2017): lr * global_batch / 256.
    """
    peak = config.lr * global_batch / 256
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
