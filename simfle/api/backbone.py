"""Backbone with its preprocessing: images to features."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from shards.io.atomic import expand_home, read_bytes
from simfle.config.overrides import shell_line
from simfle.errors import UserError
from simfle.eval.backbones.external import open_backbone
from simfle.eval.backbones.load import METADATA, BackboneMetadata, read_metadata
from simfle.export.timm import newest_checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# One image: a PIL image, [H, W, 3] or [H, W] uint8, a uint8 tensor [3, H, W], or a file path.
One: TypeAlias = "Image.Image | NDArray[np.uint8] | Tensor | str | Path"


class Backbone:
    """Frozen pretrained backbone in eval mode. Call it with images of any size.

    network: timm's module without its head, for normalized images [B, 3, H, W]; card: name, mean, std, run ...;
    features:
    number of features C; size: side in pixels to which images are resized.
    """

    def __init__(self, module: Any, card: BackboneMetadata, device: torch.device) -> None:
        self._pooled = module.to(device)
        self.card, self.device = card, device

    @property
    def network(self) -> nn.Module:
        return self._pooled.network

    @property
    def features(self) -> int:
        return self.card.features

    @property
    def size(self) -> int:
        return self.card.size

    def __call__(self, images: "One | Sequence[One]") -> Tensor:
        """Return features [B, C] float32 of one image (B = 1) or several, without augmentation."""
        with torch.no_grad():
            return self._pooled(self.preprocess(images)).float()

    def maps(self, images: "One | Sequence[One]") -> Tensor:
        """Return feature maps [B, C, h, w] float32."""
        with torch.no_grad():
            return self._pooled.maps(self.preprocess(images)).float()

    def preprocess(self, images: "One | Sequence[One]") -> Tensor:
        """Return images as [B, 3, S, S] uint8 on the device, resized as in an evaluation, not yet normalized.

        Raises:
            UserError: an input is not an image, is corrupt, or is an array or tensor other than 8-bit RGB or grayscale.
        """
        resized = [resize(pixels(image), self.size) for image in each(images)]
        if not resized:
            raise UserError("backbone: no images were given. Fix: give at least one.")
        batch = np.stack(resized)  # [B, S, S, 3]
        return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().to(self.device)  # [B, 3, S, S]

    def __repr__(self) -> str:
        return f"Backbone({self.card.name}, {self.card.network}, {self.features} features, {self.size} px)"


def load_backbone(path: str | Path, device: str = "auto") -> Backbone:
    """Load the backbone in `path`: a backbone.safetensors, a folder with one, or a run folder.

    Third-party weights are named as in timm:resnet50, see simfle/eval/backbones/external.py. device: auto, cpu or cuda.

    Raises:
        UserError: a file is missing, corrupt or of another model, or the device does not exist.
    """
    if not str(path):
        raise UserError("backbone='': empty. Fix: name a run, a backbone.safetensors, or timm:NAME.")
    place = expand_home(path)
    exported = place / "export" / "online"
    if place.is_dir() and (place / "checkpoints").is_dir():
        if not exported.is_dir():
            raise UserError(
                f"backbone: {path} is a run without exported backbones. "
                f"Fix: run {shell_line('simfle', 'export', path)}."
            )
        _mind_newer(place, exported)
        place = exported
    found = open_backbone(str(place) if place.exists() else str(path))  # Path may drop a slash of timm:NAME
    return Backbone(found.module, found.card, pick_device(device))


def _mind_newer(run: Path, exported: Path) -> None:
    """Warn if a run has newer checkpoints than its exported backbone."""
    try:
        newest = newest_checkpoint(run).name
    except UserError:  # only the exported backbone was kept
        return
    if read_metadata(exported / METADATA).run.get("checkpoint") != newest:
        log.warning(
            "%s has reached %s since its backbone was exported; to update it: simfle export %s", run, newest, run
        )


def pick_device(name: str) -> torch.device:
    """Return the device of this name; auto: the GPU if there is one. Raises UserError for an unknown or missing
    device."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name!r}: unknown. Fix: choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU. Fix: set device=cpu, or run simfle doctor.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def each(images: Any) -> Iterator[Any]:
    """Yield the images one by one, or the single image.

    The dimensions of an array decide: [H, W, 3], [3, H, W] and [H, W] are one image, other shapes are several.
    """
    if isinstance(images, Tensor | np.ndarray):
        one = images.ndim in (0, 2, 3)
    else:
        one = isinstance(images, str | bytes | Path | Image.Image | Mapping)
    try:
        return iter([images] if one else images)
    except TypeError:  # not a sequence: `pixels` reports what it is
        return iter([images])


def pixels(image: One) -> "NDArray[np.uint8]":
    """Convert one image to [H, W, 3] uint8 RGB, upright, on white if transparent. Raises UserError for non-images."""
    if isinstance(image, str | Path):
        return read_image(expand_home(image))
    if isinstance(image, Image.Image):
        return read_pillow(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise UserError(
            f"backbone: {type(image).__name__} is not an image. Fix: give PIL images, uint8 arrays, tensors or paths."
        )
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        kind = "tensor [3, H, W]" if isinstance(image, Tensor) else "array [H, W, 3]"
        raise UserError(f"backbone: image {tuple(image.shape)} of {image.dtype}. Fix: give {kind} of uint8, 0 to 255.")
    return array


def read_image(file: Path) -> "NDArray[np.uint8]":
    """Read a file as [H, W, 3] uint8 RGB with its EXIF rotation applied. Raises UserError for an invalid image."""
    from shards.imaging.codec import ImageRejected, decode_rgb

    try:
        return decode_rgb(read_bytes(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}. Fix: check the path.") from None
    except ImageRejected as error:
        raise UserError(f"{file}: not a usable image: {error.reason}. Fix: give another one.") from None


def read_pillow(image: Image.Image) -> "NDArray[np.uint8]":
    """Convert a PIL image as its file would be read. Raises UserError for its mode or if it is corrupt."""
    from shards.imaging.codec import ImageRejected, image_rgb

    try:
        return image_rgb(image)
    except ImageRejected as error:
        raise UserError(
            f"backbone: a PIL image of mode {image.mode} cannot be used ({error.detail}). "
            "Fix: give a valid 8-bit image."
        ) from None


def resize(image: "NDArray[np.uint8]", size: int) -> "NDArray[np.uint8]":
    """Resize [H, W, 3] to [size, size, 3] as simfle.eval.features.extractor does."""
    import cv2

    shrinks = min(image.shape[:2]) >= size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=method), dtype=np.uint8)
