"""Backbones: any timm network that ends in a feature map."""

import difflib
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from shards.errors import UserError


def build_backbone(name: str, output_stride: int = 0) -> nn.Module:
    """Build a randomly initialized timm network: images [B, 3, H, W] -> feature map [B, C, H/stride, W/stride].

    output_stride: stride below the network's default (0 = default), by dilation: at 8, a 48 px face keeps 6 x 6
    positions.
    Keys and shapes of parameters do not change.

    Its keys are timm's (and, for ResNets, torchvision's); `num_features` is C.

    Raises:
        UserError: If timm does not know the name, or the network has no feature map.
    """
    _check_name(name, "resnet50")
    # The reference uses torchvision's initialization, but timm would zero the last BatchNorm of each block.
    options: dict[str, Any] = {"zero_init_last": False} if name.startswith(("resnet", "wide_resnet", "resnext")) else {}
    if output_stride:
        options["output_stride"] = output_stride
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        what = f"with model.output_stride={output_stride}" if output_stride else "without its head"
        raise UserError(f"model.backbone: {name} cannot be built {what}: {error}") from None
    if feature_map_size(network, 64) is None:
        raise UserError(f"model.backbone: {name} has no feature map [B, C, h, w]. Fix: use a CNN such as resnet50.")
    return network


def build_vit(name: str, side: int) -> Any:
    """Build a randomly initialized timm ViT for side x side images.

    Maps [B, 3, side, side] -> normalized tokens [B, 1 + L, C]. Its keys are timm's; the first token is the class token;
    `num_features` is C.

    Raises:
        UserError: If timm does not know the name, it is not a plain ViT, or its patches do not divide `side`.
    """
    _check_name(name, "vit_base_patch16_224")
    refusal = UserError(
        f"model.backbone: {name} is not a plain ViT with a class token and position embeddings. "
        "Fix: use a plain ViT such as vit_base_patch16_224."
    )
    if not timm.models.is_model_in_modules(name, ["vision_transformer", "deit"]):
        raise refusal
    options: dict[str, Any] = {"img_size": side, "dynamic_img_size": False}
    try:
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **options)
    except (TypeError, AssertionError) as error:
        raise UserError(f"model.backbone: {name} cannot be built for images of {side} pixels: {error}") from None
    plain = isinstance(network, VisionTransformer) and network.num_prefix_tokens == 1 and network.pos_embed is not None
    if not plain or network.pos_embed.shape[1] != network.patch_embed.num_patches + 1:
        raise refusal
    patch = network.patch_embed.patch_size[0]
    if side % patch:
        raise UserError(
            f"views.size={side}: not a multiple of the {patch} pixels of a patch of {name}. Fix: choose a multiple."
        )
    return network


def _check_name(name: str, example: str) -> None:
    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(f"model.backbone: timm has no {name!r}; did you mean {' or '.join(near) or example}?")


def feature_map_size(network: nn.Module, side: int) -> int | None:
    """Return the side h of the square feature map for a `side` x `side` image, or None if the network has none."""
    was_training = network.training
    parameter = next(network.parameters())
    network.eval()  # so that BatchNorm statistics do not change
    try:
        with torch.no_grad():
            shape = network(torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device)).shape
    except (RuntimeError, AssertionError):  # a transformer for another image size
        return None
    finally:
        network.train(was_training)
    is_map = len(shape) == 4 and shape[1] == getattr(network, "num_features", None)
    return int(shape[2]) if is_map else None


def require_feature_map(network: nn.Module, name: str, field: str, side: int) -> int:
    """Return the side h of the feature map for a `side` x `side` image.

    Args:
        network: backbone without its head.
        name: model.backbone, for the message.
        field: configuration field of the image's side, for the message.
        side: side of the image in pixels.

    Raises:
        UserError: If the network has no square feature map for this image.
    """
    found = feature_map_size(network, side)
    if found is None:
        raise UserError(
            f"model.backbone={name}: no feature map for {field}={side}. Fix: choose a CNN such as resnet50, or another "
            f"{field}."
        )
    return found
