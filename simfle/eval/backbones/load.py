"""Load backbones to evaluate: a backbone.safetensors file, or a random initialization of the same shape.

external.py loads third-party weights (timm, torchvision, checkpoints of the reference implementation).
"""

# B batch, H x W image, C channels, h x w feature map, T tokens
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from shards.imaging.codec import MAX_SIDE
from shards.io.atomic import read_bytes
from shards.io.jsonl import loads
from simfle.config.overrides import shell_line
from simfle.errors import UserError
from simfle.models.backbone import build_backbone, create_transformer, feature_map, is_transformer

FORMAT = 1
WEIGHTS, METADATA = "backbone.safetensors", "backbone.json"


@dataclass(frozen=True)
class BackboneMetadata:
    """Content of the `backbone.json` beside the weights.

    name: timm's name; network: online, target, random, or the kind of third-party weights (timm, ...); features: number
    C; mean, std: normalization of values in [0, 1]; size: side of the training views in pixels; run: origin (run
    folder, step, `init`: source and sha256 of `model.init` if set, ...); sha256: SHA-256 of the weights file, "" if
    unknown (earlier exports); output_stride: stride of the feature map (0 = the network's default).
    """

    name: str
    network: str
    features: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    run: dict[str, Any]
    format: int = FORMAT
    sha256: str = ""
    output_stride: int = 0


class PooledBackbone(nn.Module):
    """Images [B, 3, H, W], uint8 or floats in [0, 1] -> features [B, C]: normalization, feature map, average pooling.

    For a vision transformer, features are the mean of its patch tokens without the class token.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: BackboneMetadata) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(card.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images).mean(dim=(2, 3))  # [B, C, h, w] -> [B, C]

    def maps(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], as in `forward` -> feature map [B, C, h, w]."""
        return self.feature_map(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Return (x - mean) / std of values in [0, 1]; uint8 is divided by 255."""
        values = images if images.is_floating_point() else images.float() / 255
        return (values - self.mean) / self.std

    def feature_map(self, images: Tensor) -> Tensor:
        """Compute the feature map [B, C, h, w] of normalized images [B, 3, H, W], see `simfle.models.backbone`."""
        return feature_map(self.network, images)


@dataclass(frozen=True)
class LoadedBackbone:
    """Frozen backbone in eval mode, with its card and source file (None for random or timm's weights)."""

    module: PooledBackbone
    card: BackboneMetadata
    file: Path | None = None


def load_backbone(path: Path) -> LoadedBackbone:
    """Read `path` (a backbone.safetensors, or a folder with one) and the backbone.json beside it.

    Raises:
        UserError: If a file is missing, is corrupt or has another format version, or the weights are those of another
            model.
    """
    weights = find_weights(path)
    card = read_metadata(weights.with_name(METADATA))
    try:
        content = read_bytes(weights)
        tensors = load(content)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"backbone: {weights} is not a readable safetensors file ({error}). Fix: export it again."
        ) from None
    if card.sha256 and hashlib.sha256(content).hexdigest() != card.sha256:
        raise UserError(
            f"backbone: {weights} is corrupt, or does not match its {METADATA} (sha256). Fix: export it again "
            "from its run."
        )
    network = build_network(card.name, card.size, card.output_stride)
    difference = describe_difference(network.state_dict(), tensors)
    if difference:
        raise UserError(f"backbone: {weights} is not a {card.name}: {difference}. Fix: export it again from its run.")
    network.load_state_dict(tensors)
    return LoadedBackbone(frozen(network, card), card, weights)


def find_weights(path: Path) -> Path:
    """Return the backbone.safetensors at or in `path`. Raises UserError if the file or its backbone.json is missing."""
    weights = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise UserError(f"backbone: {path} does not exist. Fix: run simfle export RUN, or use timm:NAME.")
    if not weights.is_file():
        run = path if (path / "checkpoints").is_dir() else "RUN"
        raise UserError(
            f"backbone: {path} is a folder without a {WEIGHTS}. Fix: run {shell_line('simfle', 'export', run)}."
        )
    if not weights.with_name(METADATA).is_file():
        raise UserError(f"backbone: {weights} has no {METADATA} beside it. Fix: run simfle export RUN.")
    return weights


def build_network(name: str, size: int, output_stride: int = 0) -> nn.Module:
    """Build a randomly initialized timm network without its head, which outputs a feature map or patch tokens.

    A vision transformer's position embeddings are for `size` px and interpolated for other image sizes.

    Raises:
        UserError: If timm does not know the name, or the network outputs neither.
    """
    if not is_transformer(name):
        return build_backbone(name, output_stride)
    try:
        return create_transformer(name, size)
    except UserError as error:
        raise UserError(f"backbone: {name} {error}") from None


def random_backbone(card: BackboneMetadata, seed: int) -> LoadedBackbone:
    """Build the network of `card`, freshly initialized from `seed`. The caller's random state is preserved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(card.name, card.size, card.output_stride)
    return LoadedBackbone(frozen(network, card), replace(card, network="random", run={"seed": seed}, sha256=""))


def recalibrate_batchnorm(backbone: LoadedBackbone, batches: Any) -> None:
    """Set BatchNorm statistics to those of the images in `batches` ([b, 3, H, W] uint8); change nothing else.

    A pretrained backbone has statistics of its features. An untrained backbone has 0 and 1, so its features are not
    normalized. After recalibration, a comparison of the two depends on the weights only.
    """
    norms = [module for module in backbone.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:  # LayerNorm keeps no statistics
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.no_grad():
        for images in batches:
            backbone.module(images)
    backbone.module.eval()


def read_metadata(path: Path) -> BackboneMetadata:
    """Read backbone.json. Raises UserError if it is missing, corrupt or of another format version."""
    try:
        content = loads(read_bytes(path))
    except FileNotFoundError:
        raise UserError(f"backbone: {path} does not exist. Fix: run simfle export RUN.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"backbone: {path} is corrupt ({error}). Fix: export the backbone again.") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"backbone: {path} has format {found}, not {FORMAT}. Fix: export the backbone again.")
    try:
        card = BackboneMetadata(
            name=str(content["name"]),
            network=str(content["network"]),
            features=int(content["features"]),
            mean=tuple(float(value) for value in content["mean"]),
            std=tuple(float(value) for value in content["std"]),
            size=int(content["size"]),
            run=dict(content["run"]),
            sha256=str(content.get("sha256", "")),
            output_stride=int(content.get("output_stride", 0)),
        )
        _check_card(card)
        return card  # noqa: TRY300
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"backbone: {path} is corrupt ({error!r}). Fix: export the backbone again.") from None


def _check_card(card: BackboneMetadata) -> None:
    """Raise ValueError for a number that is impossible for a backbone."""
    if len(card.mean) != 3 or len(card.std) != 3:
        raise ValueError("mean and std do not have three channels")
    if not all(math.isfinite(value) for value in card.mean) or not all(0 < value < math.inf for value in card.std):
        raise ValueError("mean is not finite, or std not above 0")
    if not 1 <= card.size <= MAX_SIDE or card.features < 1:
        raise ValueError(f"size {card.size} is not 1 to {MAX_SIDE}, or features {card.features} below 1")


def frozen(network: nn.Module, card: BackboneMetadata) -> PooledBackbone:
    """Freeze the network in eval mode. Raises UserError if the card has another number of features."""
    channels = int(network.num_features)  # type: ignore[arg-type]
    if channels != card.features:
        raise UserError(
            f"backbone: {card.name} has {channels} features, but its backbone.json has {card.features}. "
            "Fix: export it again."
        )
    return PooledBackbone(network, card).eval().requires_grad_(False)


def describe_difference(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Describe the first differences between two sets of named tensors, or return "" if names and shapes match."""
    words = []
    for what, names in (("lacks", wanted.keys() - found.keys()), ("has unknown", found.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            words.append(f"{what} {min(names)}{more}")
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name].shape != found[name].shape:
            words.append(f"{name} is {list(found[name].shape)}, not {list(wanted[name].shape)}")
            break
    return ", ".join(words)
