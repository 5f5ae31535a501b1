"""Backbones: any timm network that ends in a feature map."""

import difflib
from typing import Any

import timm
import torch
from torch import nn

from shards.errors import UserError


def build_backbone(name: str) -> nn.Module:
    """A randomly initialised timm network: images [B, 3, H, W] -> feature map [B, C, H/stride, W/stride].

    Its keys are timm's (and, for ResNets, torchvision's); `num_features` is C.

    Raises:
        UserError: timm does not know the name, or the network gives no feature map.
    """
    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(f"model.backbone: timm has no {name!r}; did you mean {' or '.join(near) or 'resnet50'}?")
    # The reference starts from torchvision's initialisation; timm would zero the last BatchNorm of each block.
    options: dict[str, Any] = {"zero_init_last": False} if name.startswith(("resnet", "wide_resnet", "resnext")) else {}
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **options)
    except (TypeError, AssertionError) as error:
        raise UserError(f"model.backbone: {name} cannot be built without its head: {error}") from None
    if feature_map_size(network, 64) is None:
        raise UserError(f"model.backbone: {name} gives no feature map [B, C, h, w]; take a CNN such as resnet50")
    return network


def feature_map_size(network: nn.Module, side: int) -> int | None:
    """Side h of the square map that `network` makes of a `side` x `side` image; None where there is no such map."""
    was_training = network.training
    parameter = next(network.parameters())
    network.eval()  # leaves the BatchNorm statistics alone
    try:
        with torch.no_grad():
            shape = network(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device)).shape
    except (RuntimeError, AssertionError):  # a transformer built for another image size
        return None
    finally:
        network.train(was_training)
    is_map = len(shape) == 4 and shape[1] == getattr(network, "num_features", None)
    return int(shape[2]) if is_map else None
