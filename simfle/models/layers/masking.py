"""Semantic masking: the backbone's channels select the patches that FaceMAE sees.

The reference starts with all grouping channels equal. They then stay equal inside a group forever, and groups separate
only through rounding noise. `repaired` keeps the paper's equations and changes two things: one map per group (which
equals a group of equal channels, at G/C of the cost) and a random start, so that groups can separate.
"""

# B batch, C channels, G groups, K maps (C in the reference, G here), h x h feature map, S = h h, L patches, V seen
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import UserError
from simfle.models import losses
from simfle.models.layers.stateless_random import stateless_uniform


class ChannelGrouping(nn.Module):
    """1x1 convolution, BatchNorm, ReLU: [B, C, h, h] -> activation maps [B, K, h, h]."""

    def __init__(self, channels: int, groups: int, kind: str) -> None:
        super().__init__()
        if channels % groups:
            raise UserError(
                f"model.mask_groups={groups}: does not divide the backbone's {channels} channels. "
                "Fix: choose a divisor."
            )
        self.convolution = nn.Conv2d(channels, channels if kind == "reference" else groups, 1)
        self.norm = nn.BatchNorm2d(self.convolution.out_channels)
        if kind == "reference":
            nn.init.constant_(self.convolution.weight, 1.0)
            nn.init.constant_(self.convolution.bias, 0.1)  # type: ignore[arg-type]
        else:
            # Zero-mean rows: each group compares the channels instead of summing all of them.
            nn.init.normal_(self.convolution.weight, std=channels**-0.5)
            nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(features)))


class SemanticMasking(nn.Module):
    """Select visible patches from a feature map and a group draw, and compute the grouping loss."""

    scores_of_map: Tensor

    def __init__(
        self, channels: int, groups: int, kind: str, *, map_side: int, face_size: int, patch: int, ratio: float
    ) -> None:
        super().__init__()
        self.channels, self.groups = channels, groups
        self.visible = visible_patches(face_size, patch, ratio)
        self.choice = "semantic"
        self.sync = False
        self.grouping = ChannelGrouping(channels, groups, kind)
        self.register_buffer("scores_of_map", patch_score_matrix(map_side, face_size, patch), persistent=False)

    def forward(self, features: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map features [B, C, h, h], draw [B] in [0, 1) -> visible patches [B, V], ascending, grouping loss, overlap.

        The overlap measures whether groups separate: the mean correlation of channels of different groups, 1 if all
        maps are equal, 0 if no two groups are active at the same position. If `choice` is random, groups are learned
        but do not select patches: an ablation of the selection alone, at the same cost and with the same BatchNorm.
        """
        maps = self.grouping(features.detach()).flatten(2)  # [B, K, S]
        with torch.autocast(features.device.type, enabled=False):  # bf16 is too coarse to normalize, square and rank
            maps = maps.to(self.scores_of_map.dtype)
            correlations = losses.correlation(maps, shared=self.sync)
            loss = losses.grouping(correlations, self.groups, self.channels)
            if self.choice == "random":
                visible = random_patches(draw, len(self.scores_of_map), self.visible)
            else:
                visible = self.most_active(self.patch_scores(maps.detach(), (draw * self.groups).long()))
        return visible, loss, losses.overlap(correlations.detach(), self.groups)

    def patch_scores(self, maps: Tensor, group: Tensor) -> Tensor:
        """Sum one group's maps and average over each patch: maps [B, K, S], group [B] -> [B, L]."""
        grouped = maps.unflatten(1, (self.groups, -1))  # [B, G, K/G, S]
        activation = grouped[torch.arange(len(maps), device=maps.device), group].sum(dim=1)  # [B, S]
        return activation @ self.scores_of_map.T

    def most_active(self, scores: Tensor) -> Tensor:
        """Return indices of the V highest scores, ascending: [B, L] -> [B, V]; ties go to the first patch."""
        order = scores.argsort(dim=1, descending=True, stable=True)
        return order[:, : self.visible].sort(dim=1).values


def visible_patches(face_size: int, patch: int, ratio: float) -> int:
    """Return the number of visible patches at mask ratio `ratio`. Raises UserError if it is 0 or all patches."""
    patches = (face_size // patch) ** 2
    visible = int(patches * (1 - ratio))
    if not 0 < visible < patches:
        raise UserError(f"model.facemae.mask_ratio={ratio}: leaves {visible} of {patches} patches visible")
    return visible


def random_patches(draw: Tensor, patches: int, visible: int) -> Tensor:
    """Sample `visible` patches uniformly without replacement: draw [B] -> [B, V], ascending (MAE, section 3)."""
    return stateless_uniform(draw, patches).argsort(dim=1)[:, :visible].sort(dim=1).values


def patch_score_matrix(map_side: int, face_size: int, patch: int) -> Tensor:
    """Return bilinear upsampling to face_size pixels and averaging over each patch as one matrix [L, S].

    Both operations are linear, so the matrix is exact; the reference computes the whole 112 x 112 image for each face.
    """
    basis = torch.eye(map_side**2, dtype=torch.float64).unflatten(1, (1, map_side, map_side))  # [S, 1, h, h]
    pixels = F.interpolate(basis, size=(face_size, face_size), mode="bilinear", align_corners=False)
    return F.avg_pool2d(pixels, patch).flatten(1).T.contiguous().to(torch.get_default_dtype())  # [L, S]
