"""Backbone with its preprocessing: images to features."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.io.atomic import expand_home, read_bytes
from simfle.errors import UserError
from simfle.eval.backbones.external import open_backbone
from simfle.eval.backbones.load import BackboneMetadata, PooledBackbone
from simfle.eval.features.resize import resize, resize_tensor
from simfle.export.timm import exported_backbone, is_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# One image: a PIL image, [H, W, 3] or [H, W] uint8, a tensor [3, H, W] of uint8 or of floats in [0, 1], or a file path.
One: TypeAlias = "Image.Image | NDArray[np.uint8] | Tensor | str | Path"
ROUNDING = 1e-3  # maximum distance by which floats of an interpolated image may leave [0, 1]


class Backbone(PooledBackbone):
    """A pretrained backbone as an `nn.Module`: images of any size to features [B, C] float32.

    The input is one image or several: tensors [B, 3, H, W] or [3, H, W] of uint8 or of floats in [0, 1], uint8 arrays
    [H, W, 3], PIL images and file paths. Images are resized to `size` as in evaluations and normalized. The module is
    loaded in eval mode. In eval mode, gradients are recorded only if the images require them; in train mode, gradients
    are recorded as in any module.

    network: timm's module without its head, for images from `preprocess`; card: name, mean, std, run ...
    """

    def __init__(self, module: PooledBackbone, card: BackboneMetadata, device: torch.device) -> None:
        super().__init__(module.network, card)
        self.card = card
        self.requires_grad_(True).eval().to(device)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def features(self) -> int:
        """C, the number of features."""
        return self.card.features

    @property
    def size(self) -> int:
        """Side in pixels that images are resized to."""
        return self.card.size

    def forward(self, images: "One | Sequence[One]") -> Tensor:
        """Return features [B, C] float32 of one image (B = 1) or several, without augmentation.

        Raises:
            UserError: See `preprocess`.
        """
        return self.maps(images).mean(dim=(2, 3))  # [B, C, h, w] -> [B, C]

    def maps(self, images: "One | Sequence[One]") -> Tensor:
        """Return feature maps [B, C, h, w] float32. Raises UserError like `preprocess`."""
        ready = self.preprocess(images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.training or ready.requires_grad)):
            return self.feature_map(ready).float()

    def preprocess(self, images: "One | Sequence[One]") -> Tensor:
        """Return normalized images [B, 3, S, S] on the device, the input of `network`, as timm's transform does.

        Raises:
            UserError: If an input is not an image or is corrupt, an array is not 8-bit RGB or grayscale, or a tensor is
                neither uint8 nor floats in [0, 1].
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            resized = [resize_tensor(_checked(images).to(self.device), self.size)]
        else:
            resized = [self._resized(image) for image in each(images)]
        if not sum(map(len, resized)):
            raise UserError("backbone: no images. Fix: pass at least one image.")
        if len({image.dtype for image in resized}) > 1:
            resized = [image if image.is_floating_point() else image.float() / 255 for image in resized]
        return self.normalize(torch.cat(resized).to(self.device)).to(self.mean.dtype)  # [B, 3, S, S]

    def _resized(self, image: One) -> Tensor:
        """Return one image as [1, 3, S, S], uint8 or floats."""
        if isinstance(image, Tensor) and image.ndim == 3:
            return resize_tensor(_checked(image[None]).to(self.device), self.size)
        return torch.from_numpy(resize(pixels(image), self.size).copy()).permute(2, 0, 1)[None]

    def __repr__(self) -> str:
        return f"Backbone({self.card.name}, {self.card.network}, {self.features} features, {self.size} px)"


def _checked(images: Tensor) -> Tensor:
    """Return images [B, 3, H, W]. Raises UserError for another shape or type, or floats outside [0, 1]."""
    if images.shape[1] != 3 or 0 in images.shape[1:] or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise UserError(
            f"backbone: image {tuple(images.shape[1:])} of {images.dtype}. "
            "Fix: pass a tensor [3, H, W] of uint8, 0 to 255, or of floats, 0 to 1."
        )
    if not images.is_floating_point() or torch.compiler.is_compiling():
        return images
    least, most = (float(value) for value in torch.aminmax(images.detach())) if len(images) else (0.0, 1.0)
    if not (least >= -ROUNDING and most <= 1 + ROUNDING):  # this is also true for NaN
        raise UserError(
            f"backbone: a tensor of floats from {least:.3g} to {most:.3g}. Fix: pass floats from 0 to 1, "
            "not normalized; the backbone normalizes them."
        )
    return images


def load_backbone(path: str | Path, device: str | torch.device = "auto") -> Backbone:
    """Load the backbone in `path`, in eval mode: a backbone.safetensors, a folder with one, or a run folder.

    A run's backbone is exported first if it is not yet.

    Third-party weights are named as in timm:resnet50, see simfle/eval/backbones/external.py. device: auto, cpu, cuda,
    one GPU such as cuda:1, or a torch.device.

    Raises:
        UserError: If a file is missing, corrupt or of another model, or the device does not exist.
    """
    if not str(path):
        raise UserError("backbone='': empty. Fix: pass a run, a backbone.safetensors, or timm:NAME.")
    place = expand_home(path)
    if place.is_dir() and is_run(place):
        place = exported_backbone(place)
    found = open_backbone(str(place) if place.exists() else str(path))  # Path may drop a slash of timm:NAME
    return Backbone(found.module, found.card, pick_device(device))


def pick_device(name: str | torch.device) -> torch.device:
    """Return a device; auto is the GPU, if there is one. Raises UserError for an unknown or missing device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: unknown. Fix: choose auto, cpu or cuda, or one GPU such as cuda:1.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}: torch finds no GPU. Fix: set device=cpu, or run simfle doctor.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: this machine has {torch.cuda.device_count()} GPUs. Fix: use a lower number.")
    return device


def each(images: Any) -> Iterator[Any]:
    """Yield the images one by one, or the single image.

    The shape of an array decides: [H, W, 3], [3, H, W] and [H, W] are one image; other shapes are several images.
    """
    if isinstance(images, Tensor | np.ndarray):
        one = images.ndim in (0, 2, 3)
    else:
        one = isinstance(images, str | bytes | Path | Image.Image | Mapping)
    try:
        return iter([images] if one else images)
    except TypeError:  # this is not a sequence; `pixels` reports the type
        return iter([images])


def pixels(image: One) -> "NDArray[np.uint8]":
    """Convert one image to [H, W, 3] uint8 RGB, upright, on white if transparent. Raises UserError for non-images."""
    if isinstance(image, str | Path):
        return read_image(expand_home(image))
    if isinstance(image, Image.Image):
        return read_pillow(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise UserError(
            f"backbone: {type(image).__name__} is not an image. Fix: pass PIL images, uint8 arrays, tensors or paths."
        )
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        kind = "tensor [3, H, W]" if isinstance(image, Tensor) else "array [H, W, 3]"
        raise UserError(f"backbone: image {tuple(image.shape)} of {image.dtype}. Fix: pass {kind} of uint8, 0 to 255.")
    return array


def read_image(file: Path) -> "NDArray[np.uint8]":
    """Read a file as [H, W, 3] uint8 RGB with its EXIF rotation applied. Raises UserError for an invalid image."""
    from shards.imaging.codec import ImageRejected, decode_rgb

    try:
        return decode_rgb(read_bytes(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}. Fix: check the path.") from None
    except ImageRejected as error:
        raise UserError(f"{file}: not a usable image: {error.reason}. Fix: pass another image.") from None


def read_pillow(image: Image.Image) -> "NDArray[np.uint8]":
    """Convert a PIL image as its file would be read. Raises UserError for its mode or if it is corrupt."""
    from shards.imaging.codec import ImageRejected, image_rgb

    try:
        return image_rgb(image)
    except ImageRejected as error:
        raise UserError(
            f"backbone: a PIL image of mode {image.mode} cannot be used ({error.detail}). "
            "Fix: pass a valid 8-bit image."
        ) from None
