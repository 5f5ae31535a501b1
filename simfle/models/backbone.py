"""Backbones: any timm network whose output is a feature map, or patch tokens that form one."""

# B batch, C channels, H x H image, h x h feature map, T prefix tokens (class and register tokens)
import difflib
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from shards.errors import UserError
from simfle.config.schema import ModelConfig, ViewsConfig

TRANSFORMERS = ("vision_transformer", "deit", "eva")  # timm modules whose networks output tokens
SIZE = 224  # side of the images that a ViT's position embeddings are for, in pixels
PROBE = 64  # side of the image that shows whether a CNN has a feature map, in pixels


def build_method_backbone(model: ModelConfig, views: ViewsConfig) -> nn.Module:
    """Build the backbone of a pretraining method for its views; see `build_backbone`."""
    return build_backbone(model.backbone, model.output_stride, views.size)


def build_backbone(name: str, output_stride: int = 0, side: int = SIZE) -> nn.Module:
    """Build a randomly initialized timm network without its head, whose `feature_map` is [B, C, h, h].

    Its keys are timm's (and, for ResNets, torchvision's); `num_features` is C.

    Args:
        name: timm's.
        output_stride: stride below the network's default (0 = default), by dilation: at 8, a 48 px face keeps 6 x 6
            positions. Keys and shapes of parameters do not change.
        side: side of the images that a ViT's position embeddings are for, in pixels; they are interpolated for other
            sides.

    Raises:
        UserError: If timm does not know the name, or the network has no feature map with this output stride and side.
    """
    _check_name(name, "resnet50")
    if is_transformer(name):
        return _build_transformer(name, output_stride, side)
    # The reference starts from torchvision's initialization; timm would zero the last BatchNorm of each block.
    options: dict[str, Any] = {"zero_init_last": False} if name.startswith(("resnet", "wide_resnet", "resnext")) else {}
    if output_stride:
        options["output_stride"] = output_stride
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **options)
    except (TypeError, AssertionError, NotImplementedError) as error:
        if output_stride:
            raise _no_stride(name, output_stride, str(error)) from None
        raise UserError(
            f"model.backbone={name}: cannot be built without its head ({error}). Fix: use a CNN such as resnet50."
        ) from None
    _count_head_channels(network)
    found = feature_map_size(network, PROBE)
    if found is None:
        raise UserError(
            f"model.backbone={name}: has no feature map [B, C, h, w]. Fix: use a CNN such as resnet50, or a ViT such "
            "as vit_small_patch16_224."
        )
    if output_stride and found != PROBE // output_stride:
        raise _no_stride(name, output_stride, f"its stride remains {PROBE // found}")
    return network


def is_transformer(name: str) -> bool:
    """Return whether timm's network `name` outputs tokens: a ViT, a DeiT, or an EVA such as DINOv3's."""
    return timm.is_model(name) and timm.models.is_model_in_modules(name, TRANSFORMERS)


def create_transformer(name: str, side: int) -> nn.Module:
    """Build a timm ViT that outputs normalized tokens [B, T + h h, C], positions for side x side images.

    Raises:
        UserError: If it cannot be built for this side, or has no token for each patch. The message lacks the name.
    """
    try:
        network = timm.create_model(name, num_classes=0, global_pool="", img_size=side, dynamic_img_size=True)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(
            f"cannot be built for images of {side} px: {str(error).rstrip('.')}. Fix: choose another model or size."
        ) from None
    patch = patch_size(network)
    if side % patch:
        raise UserError(f"needs a multiple of {patch} px, not {side}. Fix: choose another size.")
    if feature_map_size(network, 2 * patch) != 2:
        raise UserError("has no feature map [B, C, h, w] of patch tokens. Fix: choose another model.")
    return network


def _build_transformer(name: str, output_stride: int, side: int) -> nn.Module:
    try:
        network = create_transformer(name, side)
    except UserError as error:
        raise UserError(f"model.backbone={name}, views.size={side}: {error}") from None
    if output_stride and output_stride != patch_size(network):
        raise _no_stride(name, output_stride, f"its patches have {patch_size(network)} px")
    return network


def patch_size(network: nn.Module) -> int:
    """Return the side of a ViT's patches in pixels."""
    return int(network.patch_embed.patch_size[0])  # type: ignore[index, union-attr]


def feature_map(network: nn.Module, images: Tensor) -> Tensor:
    """Compute the feature map [B, C, h, w] of normalized images [B, 3, H, W].

    A ViT's normalized patch tokens are arranged as a grid; class and register tokens are left out.
    """
    found = network(images)
    if found.ndim != 3:
        return found
    patches = found[:, int(network.num_prefix_tokens) :]  # type: ignore[arg-type]  # [B, h w, C]
    rows, columns = network.patch_embed.dynamic_feat_size(images.shape[2:])  # type: ignore[operator, union-attr]
    return patches.transpose(1, 2).unflatten(2, (rows, columns))


def position_prefix(network: nn.Module) -> int:
    """Return the number of a ViT's prefix tokens that have a row in `pos_embed`, before those of the patches."""
    if getattr(network, "no_embed_class", False):
        return 0
    return int(getattr(network, "num_prefix_tokens", 0))


def freeze_patch_embed(network: nn.Module, name: str) -> None:
    """Stop training a ViT's patch projection, which then stays random or as in `model.init` (MoCo v3, section 4).

    Raises:
        UserError: If the network has no patch projection.
    """
    if not is_transformer(name):
        raise UserError(
            f"model.freeze_patch_embed=true: {name} has no patch projection. Fix: set model.freeze_patch_embed=false."
        )
    network.patch_embed.requires_grad_(False)


def _count_head_channels(network: nn.Module) -> None:
    """Set `num_features` to the channels of the output, where timm keeps a convolution between map and classifier."""
    if hasattr(network, "conv_head") and hasattr(network, "head_hidden_size"):  # MobileNetV3 and V4, after the pooling
        network.num_features = network.head_hidden_size


def _no_stride(name: str, output_stride: int, why: str) -> UserError:
    return UserError(
        f"model.output_stride={output_stride}: not supported by {name} ({why}). Fix: set model.output_stride=0."
    )


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
            image = torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device)
            shape = feature_map(network, image).shape
    except (RuntimeError, AssertionError, AttributeError):  # a transformer for another image size, or without patches
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
            f"model.backbone={name}: no feature map for {field}={side}. Fix: choose {field} as a multiple of the "
            "patch side or stride, or a CNN such as resnet50."
        )
    return found
