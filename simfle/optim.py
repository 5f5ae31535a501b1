"""Optimizers, their parameter groups and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from simfle.config.schema import OptimConfig

STATES = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq"), "lars": ("momentum_buffer",)}
"""Optimizer state tensors per parameter, of the parameter's shape, as saved in checkpoints."""
TOKENS = ("cls_token", "dist_token", "mask_token", "pos_embed", "reg_token")


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Split parameters into groups, each with a weight decay and a learning-rate factor `rate`.

    Returns the parameters without groups if all have the same values, which is the default.
    """
    named = list(named)
    if config.decay_norms and config.predictor_lr_scale == 1:
        return [parameter for _, parameter in named]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decay = config.weight_decay if config.decay_norms or is_weight(name, parameter) else 0.0
        rate = config.predictor_lr_scale if name.startswith("predictor.") else 1.0
        groups.setdefault((decay, rate), []).append(parameter)
    return [{"params": members, "weight_decay": decay, "rate": rate} for (decay, rate), members in groups.items()]


def is_weight(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a weight of a layer, and not a bias, a scale of a norm or a token."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in TOKENS


def build_optimizer(parameters: Iterable[Any], config: OptimConfig) -> torch.optim.Optimizer:
    """Build SGD with momentum, AdamW or LARS from parameters or groups; `set_lr` sets the rate before each step.

    Fused kernels make one pass over parameter, gradient and state instead of one per operation.
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
    if config.name == "lars":
        return LARS(parameters, config.momentum, config.weight_decay, config.trust_coefficient)
    raise ValueError(f"no optimizer {config.name!r}")


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of this step in each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


class LARS(torch.optim.Optimizer):
    """LARS: layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1).

    Vectors (biases, norms) use the plain rate, as in BYOL and SimCLR. LARS needs whole layers: ZeRO stage 0 only.
    """

    def __init__(self, parameters: Iterable[Any], momentum: float, weight_decay: float, trust: float) -> None:
        super().__init__(parameters, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        decay, rate = group["weight_decay"], group["lr"]
        gradient = parameter.grad
        if parameter.ndim > 1:
            size, slope = parameter.norm(), gradient.norm()  # type: ignore[union-attr]
            local = group["trust"] * size / (slope + decay * size)
            rate = rate * torch.where((size > 0) & (slope > 0), local, 1.0)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        moved = state["momentum_buffer"]
        moved.mul_(group["momentum"]).add_(rate * (gradient + decay * parameter))
        parameter.sub_(moved)


def lr_at_step(step: int, total_steps: int, global_batch: int, config: OptimConfig) -> float:
    """Return the learning rate of step `step`, counted from 0: linear warm-up, then half a cosine to 0.

    The rate is scaled linearly with the global batch (Goyal et al. 2017): lr * global_batch / 256.

    Args:
        step: optimizer step, from 0.
        total_steps: length of the run in steps.
        global_batch: samples per step.
        config: optimizer configuration.
    """
    peak = config.lr * global_batch / 256
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
