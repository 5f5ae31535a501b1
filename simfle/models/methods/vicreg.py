"""VICReg (Bardes, Ponce, LeCun 2022, arXiv 2105.04906): invariance, variance and covariance of two views."""

# n samples of this process, N of all processes, D projection
import torch
from torch import Tensor

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, VICRegConfig, ViewsConfig
from simfle.models.backbone import build_method_backbone
from simfle.models.base import Losses, Method, to_fp32
from simfle.models.layers.all_gather import all_gather_with_grad
from simfle.models.layers.heads import BackboneWithHead, expander

GAMMA = 1.0  # target deviation of each dimension (section 4.1)
EPSILON = 1e-4  # keeps the root's gradient finite (section 4.1)


class VICReg(Method):
    """Backbone and a three-layer expander; statistics are those of the micro-batches of all processes."""

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        self.online = BackboneWithHead(backbone, expander(channels, model.head_hidden_dim, model.head_out_dim))

    def forward(self, batch: Batch) -> Losses:
        (y1, z1), (y2, z2) = (
            self.online(self.normalize(view, network_only=True)) for view in (batch.view1, batch.view2)
        )
        self.record_features(features=(y1, y2), projection=(z1, z2))
        with torch.autocast(z1.device.type, enabled=False):
            return vicreg(all_gather_with_grad(to_fp32(z1)), all_gather_with_grad(to_fp32(z2)), self.config.vicreg)


def vicreg(z1: Tensor, z2: Tensor, weights: VICRegConfig) -> Losses:
    """Compute equation 6 for two batches of projections [N, D], and its parts.

    The invariance is also averaged over dimensions, as in the paper's algorithm 1 with these weights; equation 5 sums
    over them.
    """
    invariance = (z1 - z2).square().mean()
    spread = variance(z1) + variance(z2)
    decorrelation = covariance(z1) + covariance(z2)
    total = weights.invariance * invariance + weights.variance * spread + weights.covariance * decorrelation
    return {"invariance": invariance, "variance": spread, "covariance": decorrelation, "total": total}


def variance(projections: Tensor) -> Tensor:
    """Average over dimensions how far the standard deviation is below GAMMA: [N, D] -> scalar (equations 1 and 2)."""
    deviation = (projections.var(dim=0) + EPSILON).sqrt()  # [D], unbiased
    return (GAMMA - deviation).clamp(min=0).mean()


def covariance(projections: Tensor) -> Tensor:
    """Sum the squared covariances of different dimensions, divided by D: [N, D] -> scalar (equations 3 and 4)."""
    centered = projections - projections.mean(dim=0)
    matrix = centered.T @ centered / (len(projections) - 1)  # [D, D]
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / projections.shape[1]
