"""Base class of all methods: the root module that the trainer calls."""

# B batch, H x H image, D FaceMAE's width, F side of the face, L patches, V visible patches, P values of a patch
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from simfle.config.schema import ModelConfig

Losses = dict[str, Tensor]
"""Named scalars from the paper, `total`, and measures. A plain dict, in which ZeRO stage 3 finds tensors."""


@dataclass
class Reconstruction:
    """Input and output of an autoencoder in one forward pass.

    face [B, 3, F, F] normalized, visible [B, V], prediction [B, L, P]; patch: side of a patch, pixels.
    """

    face: Tensor
    visible: Tensor
    prediction: Tensor
    patch: int


class Method(nn.Module):
    """Pretraining method as one root module: `forward(batch) -> Losses`, then `on_step_end()` per optimizer step.

    Exported backbones are `online.backbone.` and, if a method has an EMA copy of it, `target.backbone.`; both have
    timm's key names.

    images: images of a `Batch` that the method reads. replicated_buffers: names of saved buffers that are equal on
    every process, saved bit-identical in a checkpoint (other buffers, BatchNorm's statistics, are averaged).
    """

    images: ClassVar[tuple[str, ...]] = ("view1", "view2")
    replicated_buffers: ClassVar[tuple[str, ...]] = ()
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
        self.capture_reconstruction = False
        self.reconstruction: Reconstruction | None = None
        self.record_enabled = False
        self.recorded_features: dict[str, list[tuple[Tensor, ...]]] = {}

    def normalize(self, images: Tensor, *, network_only: bool = False) -> Tensor:
        """Normalize uint8 [B, 3, H, H] to zero mean and unit variance; the memory format does not change.

        network_only: whether only a network under autocast reads the result, which on a GPU then has autocast's type.
        """
        if not images.is_cuda:  # keeps CPU runs bit-identical to those of earlier versions
            return (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        narrow = network_only and torch.is_autocast_enabled("cuda")
        return scaled(images, self.scale, self.shift, torch.get_autocast_dtype("cuda") if narrow else self.scale.dtype)

    def record_features(self, **branches: tuple[Tensor, ...]) -> None:
        """Keep features [B, C] of each branch, one tensor per view, if requested. Changes no loss."""
        if self.record_enabled:
            for name, views in branches.items():
                self.recorded_features.setdefault(name, []).append(tuple(view.detach() for view in views))

    def networks(self) -> list[nn.Module]:
        """Return the modules with nearly all of the computation: backbones, masked autoencoders."""
        names = ("online.backbone", "target.backbone", "facemae", "decoder_blocks")
        return [module for name, module in self.named_modules() if name in names]

    def on_step_end(self, progress: float = 0.0) -> None:
        """Run after an optimizer step; progress: completed fraction of the run, 0 to 1."""


def scaled(images: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute uint8 [B, 3, H, H] x scale + shift [1, 3, 1, 1] in fp32, rounded to `dtype` in one pass over memory."""
    return torch.addcmul(shift, images, scale, out=torch.empty_like(images, dtype=dtype))


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Update the target network: target = m target + (1 - m) online, parameters only, in fp32."""
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    targets, onlines = zip(*((local_shard(slow), local_shard(fast)) for slow, fast in pairs), strict=True)
    torch._foreach_lerp_(list(targets), list(onlines), 1 - momentum)


def ema_momentum(progress: float, model: ModelConfig) -> float:
    """Return the EMA momentum m at fraction `progress` of the run.

    Cosine: 1 - (1 - m) (cos(pi progress) + 1) / 2, from m to 1 (BYOL, Grill et al. 2020, section 3.2).
    """
    if model.ema_schedule == "constant":
        return model.ema_momentum
    return 1 - (1 - model.ema_momentum) * (math.cos(math.pi * min(1.0, progress)) + 1) / 2


def to_fp32(tensor: Tensor) -> Tensor:
    """Cast bf16 of autocast to fp32 for the losses; keep fp64."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def local_shard(parameter: Tensor) -> Tensor:
    """Return this process's part of a parameter: its ZeRO stage 3 partition, otherwise the whole parameter.

    Online and target have the same partitions, and an EMA is elementwise, so no gathering is needed.
    """
    return getattr(parameter, "ds_tensor", parameter.data)
