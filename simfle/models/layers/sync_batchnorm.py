"""Synchronize batch statistics across processes, so that results do not depend on the number of processes."""

# B batch of this process, C channels
import timm.layers
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from shards.errors import UserError
from simfle.models.layers.masking import SemanticMasking


def convert_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm, and the grouping loss, use the whole micro-batch of all processes.

    Uses torch's SyncBatchNorm on a GPU, and `CpuSyncBatchNorm` on a CPU, which SyncBatchNorm does not support. Call
    this before ZeRO partitions the parameters.
    """
    for module in model.modules():
        if isinstance(module, SemanticMasking):
            module.sync = True
    if device.type == "cuda":
        return timm.layers.convert_sync_batchnorm(model)
    for name, module in model.named_modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = CpuSyncBatchNorm  # keeps parameters, buffers and names
        elif type(module) is timm.layers.BatchNormAct2d:
            module.__class__ = CpuSyncBatchNormAct  # type: ignore[assignment]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"train.sync_batchnorm=true: {name} is a {type(module).__name__}, not supported on a CPU. "
                "Fix: use a GPU."
            )
    return model


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm (Ioffe and Szegedy 2015) over the batches of all processes, which must be of equal size."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self.synced(input.float() if input.dtype == torch.bfloat16 else input).to(input.dtype)

    def synced(self, images: Tensor) -> Tensor:
        """Normalize [B, C] or [B, C, H, W] in two passes, mean first: E[x^2] - E[x]^2 would cancel in fp32."""
        world = dist.get_world_size()
        over = [dim for dim in range(images.ndim) if dim != 1]
        shape = [1, -1] + [1] * (images.ndim - 2)
        mean = all_reduce(images.mean(over)) / world  # [C]
        centered = images - mean.view(shape)
        variance = all_reduce(centered.square().mean(over)) / world  # [C]
        self._track(mean.detach(), variance.detach(), world * images.numel() // images.shape[1])
        scale = (variance + self.eps).rsqrt()
        if self.weight is None:  # affine=False
            return centered * scale.view(shape)
        return centered * (self.weight * scale).view(shape) + self.bias.view(shape)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        rate = self.momentum if self.momentum is not None else 0.1
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), rate)  # unbiased, as in torch

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected [B, C] or [B, C, H, W], got {list(input.shape)}")


class CpuSyncBatchNormAct(CpuSyncBatchNorm):
    """The same with the activation of timm's BatchNormAct2d, which EfficientNet, MobileNetV4 and RegNet contain."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))
