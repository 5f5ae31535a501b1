"""Draw FaceMAE's input and output: face, visible patches, reconstruction."""

# N faces shown, L patches, P values of a patch, F side of the face
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from simfle.models.base import Reconstruction
from simfle.models.layers.facemae import patchify, unpatchify

GRAY = 0.5


@torch.no_grad()
def draw_reconstruction(picture: Reconstruction, mean: Tensor, std: Tensor, count: int = 8) -> np.ndarray:
    """Draw one row per face: the face, its visible patches, the reconstruction of the rest: [N F, 3 F, 3] uint8 RGB.

    FaceMAE predicts patches normalized by their own mean and variance; mean and variance are taken from the face, as in
    the figures of MAE's authors.
    """
    face, patch = picture.face[:count].float(), picture.patch
    patches = patchify(face, patch)  # [N, L, P]
    seen = torch.zeros_like(patches[:, :, :1]).scatter(1, picture.visible[:count, :, None], 1.0)  # [N, L, 1]
    level, spread = patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()
    made = picture.prediction[:count] * spread + level
    gray = patchify(((GRAY - mean) / std).expand_as(face).float(), patch)
    columns = [patches, patches * seen + gray * (1 - seen), patches * seen + made * (1 - seen)]
    images = [(unpatchify(column, patch) * std + mean).clamp(0, 1) for column in columns]
    sheet = torch.cat([torch.cat(list(image), dim=1) for image in images], dim=2)  # [3, N F, 3 F]
    return (sheet * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image, [H, W, 3] uint8 RGB, as PNG."""
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
