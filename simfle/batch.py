"""One micro-batch of one process: the interface between data and methods."""

# B batch, S side of a view, F side of the face
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Views and face crops of B images, uint8 in channels_last memory; the model normalizes them.

    view1, view2: [B, 3, S, S]; face: [B, 3, F, F]; ids: [B] int64, global sample ids;
    mask_uniform: [B] float64 in [0, 1), selects the channel group that masks the face: group = floor(mask_uniform *
    groups).
    """

    view1: Tensor
    view2: Tensor
    face: Tensor
    ids: Tensor
    mask_uniform: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to `device` without waiting for the copies."""
        tensors = (self.view1, self.view2, self.face, self.ids, self.mask_uniform)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))
