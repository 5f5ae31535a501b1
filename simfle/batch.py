"""The joint between data and methods: one micro-batch of one process."""

# B batch, S side of a view, F side of the face
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images are uint8 in channels_last memory; the model normalises them.

    view1, view2: [B, 3, S, S]; face: [B, 3, F, F]; ids: [B] int64, the global sample ids;
    draw: [B] float64 in [0, 1), which channel group masks the face: group = floor(draw * groups).
    """

    view1: Tensor
    view2: Tensor
    face: Tensor
    ids: Tensor
    draw: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`, without waiting for the copies."""
        tensors = (self.view1, self.view2, self.face, self.ids, self.draw)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))
