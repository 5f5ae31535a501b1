"""What all methods share: the root module that the trainer drives."""

# B batch, H x H image, D FaceMAE's width, F side of the face, L patches, V visible patches, P numbers of a patch
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from shards.errors import UserError
from simfle.config import ContrastConfig, ModelConfig

Losses = dict[str, Tensor]
"""Named scalars from the paper, `total`, and measures. A dict: ZeRO stage 3 finds tensors in nothing fancier."""

SCHEDULES = ("constant", "cosine")


@dataclass
class Picture:
    """What an autoencoder saw and made in one forward.

    face [B, 3, F, F] normalised, visible [B, V], prediction [B, L, P]; patch: side of a patch, pixels.
    """

    face: Tensor
    visible: Tensor
    prediction: Tensor
    patch: int


class Method(nn.Module):
    """A pretraining method as one root module: `forward(batch) -> Losses`, then `after_step()` per optimizer step.

    What is exported lies under `online.backbone.` and, where a method has a slow copy of it, `target.backbone.`; both
    have timm's key names.

    images: the images of a `Batch` that it reads. alike: names of saved buffers that are equal on every process, which
    a checkpoint keeps bit for bit (others, BatchNorm's statistics, are averaged).
    """

    images: ClassVar[tuple[str, ...]] = ("view1", "view2")
    alike: ClassVar[tuple[str, ...]] = ()
    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.config = model
        self.register_buffer("mean", torch.tensor(model.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(model.std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * self.std), persistent=False)
        self.register_buffer("shift", -self.mean / self.std, persistent=False)
        self.keep_picture = False
        self.picture: Picture | None = None
        self.keep_features = False
        self.kept: dict[str, list[tuple[Tensor, ...]]] = {}

    def normalise(self, images: Tensor, *, network_only: bool = False) -> Tensor:
        """uint8 [B, 3, H, H] -> zero mean, unit variance; the memory format stays.

        network_only: nothing but a network under autocast reads them, which on a GPU gets them in its own type.
        """
        if not images.is_cuda:  # as each step of a CPU run has been: the same bits
            return (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        narrow = network_only and torch.is_autocast_enabled("cuda")
        return scaled(images, self.scale, self.shift, torch.get_autocast_dtype("cuda") if narrow else self.scale.dtype)

    def note(self, **branches: tuple[Tensor, ...]) -> None:
        """Keep features [B, C] of each branch, one tensor for each view, where they are asked for. No loss changes."""
        if self.keep_features:
            for name, views in branches.items():
                self.kept.setdefault(name, []).append(tuple(view.detach() for view in views))

    def networks(self) -> list[nn.Module]:
        """The parts that nearly all of the work is done in: backbones, masked autoencoders."""
        names = ("online.backbone", "target.backbone", "facemae", "decoder_blocks")
        return [module for name, module in self.named_modules() if name in names]

    def after_step(self, progress: float = 0.0) -> None:
        """What follows an optimizer step; progress: share of the run that is done, 0 to 1."""


def scaled(images: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, 3, H, H] x scale + shift [1, 3, 1, 1] in fp32, rounded to `dtype`: one pass over memory on a GPU."""
    return torch.addcmul(shift, images, scale, out=torch.empty_like(images, dtype=dtype))


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the target network: target = m target + (1 - m) online, parameters only, in fp32."""
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    targets, onlines = zip(*((local(slow), local(fast)) for slow, fast in pairs), strict=True)
    torch._foreach_lerp_(list(targets), list(onlines), 1 - momentum)


def momentum_at(progress: float, model: ModelConfig) -> float:
    """The EMA momentum m after a share `progress` of the run.

    Cosine: 1 - (1 - m) (cos(pi progress) + 1) / 2, from m to 1 (BYOL, Grill et al. 2020, section 3.2).
    """
    if model.momentum_schedule == "constant":
        return model.momentum
    return 1 - (1 - model.momentum) * (math.cos(math.pi * min(1.0, progress)) + 1) / 2


def check_momentum(model: ModelConfig) -> None:
    """Raise a UserError for a momentum or a schedule that is none."""
    if model.momentum_schedule not in SCHEDULES:
        raise UserError(f"model.momentum_schedule is {model.momentum_schedule!r}; known are {' and '.join(SCHEDULES)}")
    if not 0 <= model.momentum <= 1:
        raise UserError(f"model.momentum={model.momentum}; it must be between 0 and 1")


def check_contrast(contrast: ContrastConfig) -> None:
    """Raise a UserError that names the first field out of its range."""
    for name in ("queue", "splits", "prototypes", "sinkhorn"):
        if getattr(contrast, name) < 1:
            raise UserError(f"model.contrast.{name}={getattr(contrast, name)}; it must be at least 1")
    for name in ("temperature", "epsilon"):
        if not getattr(contrast, name) > 0:
            raise UserError(f"model.contrast.{name}={getattr(contrast, name)}; it must be above 0")


def full(tensor: Tensor) -> Tensor:
    """Out of autocast's bf16: losses are computed in fp32, or fp64 where the model runs in it."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter: its ZeRO stage 3 partition, else all of it.

    Online and target are partitioned alike, and an EMA is elementwise: no gathering needed.
    """
    return getattr(parameter, "ds_tensor", parameter.data)
