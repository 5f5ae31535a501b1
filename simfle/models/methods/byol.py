"""BYOL (Grill et al. 2020, arXiv 2006.07733): predict the target network's projection of the other view."""

# B batch, C channels, H x H image, h x h feature map, D projection
import copy
from typing import NamedTuple

import torch
from torch import Tensor

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.models import losses
from simfle.models.backbone import build_method_backbone, feature_map
from simfle.models.base import Losses, Method, ema_momentum, ema_update, to_fp32
from simfle.models.layers.all_gather import all_gather_with_grad
from simfle.models.layers.heads import BackboneWithHead, MLPHead


class Views(NamedTuple):
    """Outputs of the online network for both views: maps [B, C, h, h], y [B, C]; and the losses on them.

    `losses` contains "similarity" and, with model.decorrelation_weight, "decorrelation"; `total` is their weighted sum.
    """

    maps: tuple[Tensor, Tensor]
    pooled: tuple[Tensor, Tensor]
    losses: Losses
    total: Tensor


class BYOL(Method):
    """Online backbone, projector and predictor; the target network is a moving average of backbone and projector."""

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        backbone = build_method_backbone(model, views)
        self.channels = int(backbone.num_features)  # type: ignore[arg-type]
        self.online = BackboneWithHead(backbone, MLPHead(self.channels, model.head_hidden_dim, model.head_out_dim))
        self.predictor = MLPHead(model.head_out_dim, model.head_hidden_dim, model.head_out_dim)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, batch: Batch) -> Losses:
        views = self.global_branch(
            self.normalize(batch.view1, network_only=True), self.normalize(batch.view2, network_only=True)
        )
        return {**views.losses, "total": views.total}

    def global_branch(self, view1: Tensor, view2: Tensor) -> "Views":
        """Compute features of normalized views [B, 3, H, H] and the similarity loss (equations 2 and 3, symmetrized).

        BatchNorm sees one view at a time. Not in the paper: model.decorrelation_weight adds the decorrelation of the
        projections, averaged over both views, so that they do not collapse to a few dimensions.
        """
        maps1 = feature_map(self.online.backbone, view1)
        pooled1 = maps1.mean(dim=(2, 3))
        projected1 = self.online.projector(pooled1)
        maps2 = feature_map(self.online.backbone, view2)
        pooled2 = maps2.mean(dim=(2, 3))
        projected2 = self.online.projector(pooled2)
        self.record_features(features=(pooled1, pooled2), projection=(projected1, projected2))
        prediction1, prediction2 = self.predictor(projected1), self.predictor(projected2)
        with torch.no_grad():
            target1, target2 = self.target(view1)[1], self.target(view2)[1]
        forth = losses.similarity(to_fp32(prediction1), to_fp32(target2))
        back = losses.similarity(to_fp32(prediction2), to_fp32(target1))
        found: Losses = {"similarity": forth + back}
        total = found["similarity"]
        if self.config.decorrelation_weight:
            found["decorrelation"] = self.decorrelation(projected1, projected2)
            total = total + self.config.decorrelation_weight * found["decorrelation"]
        return Views((maps1, maps2), (pooled1, pooled2), found, total)

    def decorrelation(self, *projections: Tensor) -> Tensor:
        """Average the decorrelation loss over views [n, D]; the statistics cover the micro-batches of all processes."""
        with torch.autocast(projections[0].device.type, enabled=False):
            gathered = [all_gather_with_grad(to_fp32(projection)) for projection in projections]
            return torch.stack([losses.decorrelation(projection) for projection in gathered]).mean()

    def on_step_end(self, progress: float = 0.0) -> None:
        ema_update(self.target, self.online, ema_momentum(progress, self.config))
