"""Output of a view backend for a micro-batch."""

# n samples, S side of a view, F side of the face
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simfle.data.views import BatchViewParams

IMAGES = ("view1", "view2", "face")  # possible outputs of a backend
CORRUPT = 128  # gray level that fills the views of an undecodable sample


@dataclass(frozen=True)
class RenderedViews:
    """Rendered micro-batch. view1, view2: [n, 3, S, S]; face: [n, 3, F, F]; uint8, channels_last.

    corrupt: positions of the samples filled with CORRUPT. Images that were not requested have side 0.
    """

    view1: Tensor
    view2: Tensor
    face: Tensor
    corrupt: list[int]


def used_here(*images: Tensor) -> None:
    """Record that images produced on a backend's stream are read on the current stream.

    Otherwise their memory could be returned to the backend's stream and overwritten before the current stream has read
    it.
    """
    for image in images:
        if image.is_cuda:
            image.record_stream(torch.cuda.current_stream(image.device))


class ViewBackend(Protocol):
    """Backend that decodes images and applies view parameters. It uses no random numbers."""

    def render(self, images: Sequence[NDArray[np.uint8]], draws: BatchViewParams) -> RenderedViews:
        """Render the views of n JPEGs [bytes] uint8. A sample's pixels depend on that sample alone."""
        ...

    def close(self) -> None:
        """Free threads and device memory."""
        ...
