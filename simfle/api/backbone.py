"""A backbone with its preprocessing: images in, features out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from shards.files import at_home, read_bytes
from simfle.errors import UserError
from simfle.eval.backbones import CARD, Card, read_card
from simfle.eval.export import newest_checkpoint
from simfle.eval.foreign import open_backbone
from simfle.words import shell_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# One image: a PIL image, [H, W, 3] or [H, W] uint8, a uint8 tensor [3, H, W], or the path of a file.
One: TypeAlias = "Image.Image | NDArray[np.uint8] | Tensor | str | Path"


class Backbone:
    """A pretrained backbone, frozen, in eval mode. Call it with images of any size.

    network: timm's module without its head, for normalised images [B, 3, H, W]; card: name, mean, std, run ...;
    features: C; size: side in pixels that images are resized to.
    """

    def __init__(self, module: Any, card: Card, device: torch.device) -> None:
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
        """Features [B, C] float32 of one image (B = 1) or several; whole, without augmentation."""
        with torch.no_grad():
            return self._pooled(self.preprocess(images)).float()

    def maps(self, images: "One | Sequence[One]") -> Tensor:
        """Feature maps [B, C, h, w] float32."""
        with torch.no_grad():
            return self._pooled.maps(self.preprocess(images)).float()

    def preprocess(self, images: "One | Sequence[One]") -> Tensor:
        """Images as [B, 3, S, S] uint8 on the device, resized as an evaluation does; normalising is the module's part.

        Raises:
            UserError: something that is no image, or damaged; an array or a tensor that is not RGB or grey of 8 bits.
        """
        resized = [resize(pixels(image), self.size) for image in each(images)]
        if not resized:
            raise UserError("backbone: no images were given")
        batch = np.stack(resized)  # [B, S, S, 3]
        return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().to(self.device)  # [B, 3, S, S]

    def __repr__(self) -> str:
        return f"Backbone({self.card.name}, {self.card.network}, {self.features} features, {self.size} px)"


def load_backbone(path: str | Path, device: str = "auto") -> Backbone:
    """The backbone in `path`: a backbone.safetensors, the folder that holds one, or a run's folder.

    Other people's weights come by a word such as timm:resnet50, see simfle/eval/foreign.py. device: auto, cpu or cuda.

    Raises:
        UserError: a file missing, damaged or of another model; no such device.
    """
    if not str(path):
        raise UserError("backbone: '' names none; name a run, a backbone.safetensors, or timm:NAME and the like")
    place = at_home(path)
    exported = place / "export" / "online"
    if place.is_dir() and (place / "checkpoints").is_dir():
        if not exported.is_dir():
            raise UserError(
                f"backbone: {path} is a run without exported backbones; first: {shell_line('simfle', 'export', path)}"
            )
        _mind_newer(place, exported)
        place = exported
    found = open_backbone(str(place) if place.exists() else str(path))  # as a path, timm:NAME may lose a slash
    return Backbone(found.module, found.card, pick_device(device))


def _mind_newer(run: Path, exported: Path) -> None:
    """Say that a run has gone on since its backbone was exported: no error, but its user must know."""
    try:
        newest = newest_checkpoint(run).name
    except UserError:  # only the backbone was kept
        return
    if read_card(exported / CARD).run.get("checkpoint") != newest:
        log.warning("%s has gone on to %s since its backbone was exported; anew: simfle export %s", run, newest, run)


def pick_device(name: str) -> torch.device:
    """auto: the GPU, if there is one. Raises UserError: not a device, or none of this kind here."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {name!r}; known are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU; take device=cpu, or ask `simfle doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def each(images: Any) -> Iterator[Any]:
    """The images one by one, of one image that one.

    Of arrays the dimensions tell: [H, W, 3], [3, H, W] and [H, W] are an image, others are several.
    """
    if isinstance(images, Tensor | np.ndarray):
        one = images.ndim in (0, 2, 3)
    else:
        one = isinstance(images, str | bytes | Path | Image.Image | Mapping)
    try:
        return iter([images] if one else images)
    except TypeError:  # nothing of several: `pixels` says what it is
        return iter([images])


def pixels(image: One) -> "NDArray[np.uint8]":
    """One image as [H, W, 3] uint8 RGB, upright, on white where it is transparent. Raises UserError: it is no image."""
    if isinstance(image, str | Path):
        return read_image(at_home(image))
    if isinstance(image, Image.Image):
        return read_pillow(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise UserError(
            f"backbone: {type(image).__name__} is no image; give PIL images, uint8 arrays, tensors or paths"
        )
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        kind = "tensor [3, H, W]" if isinstance(image, Tensor) else "array [H, W, 3]"
        raise UserError(f"backbone: an image is {kind} of uint8, 0 to 255; found {tuple(image.shape)} of {image.dtype}")
    return array


def read_image(file: Path) -> "NDArray[np.uint8]":
    """A file as [H, W, 3] uint8 RGB, turned upright as its EXIF says. Raises UserError: it is no image, or damaged."""
    from shards.encode import Unusable, decode_rgb

    try:
        return decode_rgb(read_bytes(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except Unusable as error:
        raise UserError(f"{file} is no image that can be used: {error.reason}") from None


def read_pillow(image: Image.Image) -> "NDArray[np.uint8]":
    """A PIL image as [H, W, 3] uint8 RGB, as its file would be read. Raises UserError: its mode, or it is damaged."""
    from shards.encode import Unusable, image_rgb

    try:
        return image_rgb(image)
    except Unusable as error:
        raise UserError(
            f"backbone: a PIL image of mode {image.mode} cannot be used ({error.detail}); give a sound one of 8 bits"
        ) from None


def resize(image: "NDArray[np.uint8]", size: int) -> "NDArray[np.uint8]":
    """[H, W, 3] -> [size, size, 3], as simfle.eval.features does it."""
    import cv2

    shrinks = min(image.shape[:2]) >= size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=method), dtype=np.uint8)
