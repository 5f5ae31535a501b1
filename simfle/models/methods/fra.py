"""FRA (Gao and Patras 2024, arXiv 2403.02138): consistent embeddings of the face and of its regions.

As in the paper, learned queries attend to the feature map and yield mask embeddings. Heatmaps are the cosine similarity
of mask embeddings and projected positions, and regions are pooled with these heatmaps. A semantic consistency loss
between views (BYOL's) uses global and regional embeddings. A semantic relation loss aligns cluster assignments of the
online and the momentum network, with mask embeddings as clusters.

Unlike this project, the paper assigns each position and therefore needs the positions that both views share. Batches
carry no crop geometry, so each *region* is assigned to the mask embeddings instead: the pooled projection of region k
of one view predicts the code of region k of the other view. Codes are the momentum network's, balanced by
Sinkhorn-Knopp as in SwAV over all regions of the micro-batches of all processes. One attention block, all widths,
temperatures and weights are chosen here, too.
"""

# B batch, C channels, h x h feature map, S = h h positions, K regions, d width of the mask embeddings, D projection
import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simfle.batch import Batch
from simfle.config.schema import FRAConfig, ModelConfig, ViewsConfig
from simfle.models import losses
from simfle.models.backbone import build_method_backbone, feature_map, require_feature_map
from simfle.models.base import Losses, Method, ema_momentum, ema_update, to_fp32
from simfle.models.layers.facemae import CrossAttention, check_width
from simfle.models.layers.heads import MLPHead
from simfle.models.methods.swav import sinkhorn, swapped_prediction


class Embeddings(NamedTuple):
    """Outputs of one network for one view.

    pooled y [B, C]; face [B, D] and regions [B K, D], projections; scores [B K, K], cosines of each region with the
    mask embeddings; masks [B, K, S], which sum to 1 over the regions.
    """

    pooled: Tensor
    face: Tensor
    regions: Tensor
    scores: Tensor
    masks: Tensor


class FRA(Method):
    """Online network with region heads, predictors, and the target network, a moving average."""

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        check_width("model.fra.embed_dim", model.fra.embed_dim, model.fra.num_heads)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        side = require_feature_map(backbone, model.backbone, "views.size", views.size)
        hidden, out = model.head_hidden_dim, model.head_out_dim
        heads = MLPHead(channels, hidden, out), MLPHead(channels, hidden, out)
        self.online = RegionNetwork(backbone, *heads, RegionMasks(channels, side, model.fra))
        self.predictor = nn.ModuleDict({name: MLPHead(out, hidden, out) for name in ("face", "regions")})
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, batch: Batch) -> Losses:
        fra = self.config.fra
        view1, view2 = (self.normalize(view, network_only=True) for view in (batch.view1, batch.view2))
        online1, online2 = self.online(view1), self.online(view2)
        self.record_features(features=(online1.pooled, online2.pooled), projection=(online1.face, online2.face))
        with torch.no_grad():
            target1, target2 = self.target(view1), self.target(view2)
        similarity = self.consistency("face", online1.face, online2.face, target1.face, target2.face)
        regions = self.consistency("regions", online1.regions, online2.regions, target1.regions, target2.regions)
        relation = self.relation(online1, online2, target1, target2)
        total = similarity + fra.region_weight * regions + fra.relation_weight * relation
        entropy = mask_entropy(torch.cat([online1.masks, online2.masks]).detach())
        return {"similarity": similarity, "regions": regions, "relation": relation, "total": total, "entropy": entropy}

    def consistency(self, name: str, online1: Tensor, online2: Tensor, target1: Tensor, target2: Tensor) -> Tensor:
        """Compute the semantic consistency, BYOL's loss in both directions of projections [n, D]; name: the
        predictor."""
        predict = self.predictor[name]
        prediction1, prediction2 = to_fp32(predict(online1)), to_fp32(predict(online2))
        return losses.similarity(prediction1, to_fp32(target2)) + losses.similarity(prediction2, to_fp32(target1))

    def relation(self, online1: Embeddings, online2: Embeddings, target1: Embeddings, target2: Embeddings) -> Tensor:
        """Compute the semantic relation: cross-entropy of each region's assignment with the other view's balanced
        code."""
        contrast = self.config.contrastive
        with torch.no_grad():
            codes1, codes2 = (
                sinkhorn(each.scores, contrast.sinkhorn_epsilon, contrast.sinkhorn_iterations)
                for each in (target1, target2)
            )
        return swapped_prediction(online1.scores, online2.scores, codes1, codes2, self.config.fra.temperature)

    def on_step_end(self, progress: float = 0.0) -> None:
        ema_update(self.target, self.online, ema_momentum(progress, self.config))


class RegionNetwork(nn.Module):
    """Backbone, masks, and a projector for the face and one for its regions: images [B, 3, H, H] -> Embeddings."""

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, region_projector: nn.Module, masks: "RegionMasks"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.region_projector = region_projector
        self.masks = masks

    def forward(self, images: Tensor) -> Embeddings:
        maps = feature_map(self.backbone, images)  # [B, C, h, h]
        pooled = maps.mean(dim=(2, 3))  # [B, C]
        embeddings, positions = self.masks(maps)  # [B, K, d], [B, S, d]
        with torch.autocast(maps.device.type, enabled=False):
            masks = heatmaps(embeddings, positions, self.masks.temperature)  # [B, K, S]
            regions = pool(masks, to_fp32(maps).flatten(2).transpose(1, 2))  # [B, K, C]
            scores = cosines(pool(masks, F.normalize(positions, dim=2)), embeddings)  # [B, K, K]
        projected = self.region_projector(regions.flatten(0, 1))  # [B K, D]
        return Embeddings(pooled, self.projector(pooled), projected, scores.flatten(0, 1), masks)


class RegionMasks(nn.Module):
    """Mask embeddings and projected positions of a feature map: [B, C, h, h] -> [B, K, d], [B, S, d], fp32."""

    def __init__(self, channels: int, side: int, fra: FRAConfig) -> None:
        super().__init__()
        self.temperature = fra.mask_temperature
        self.queries = nn.Parameter(torch.randn(fra.regions, fra.embed_dim))
        self.attention = CrossAttention(fra.embed_dim, fra.num_heads, channels, side)
        self.norm = nn.LayerNorm(fra.embed_dim, eps=1e-6)
        hidden = 4 * fra.embed_dim
        self.mlp = nn.Sequential(nn.Linear(fra.embed_dim, hidden), nn.GELU(), nn.Linear(hidden, fra.embed_dim))
        self.position_projector = nn.Linear(channels, fra.embed_dim)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.queries.expand(len(maps), -1, -1)  # [B, K, d]
        embeddings = queries + self.attention(queries, maps[:, None])
        embeddings = embeddings + self.mlp(self.norm(embeddings))
        return to_fp32(embeddings), to_fp32(self.position_projector(maps.flatten(2).transpose(1, 2)))


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Compute cosine similarities of all pairs: [B, M, d], [B, N, d] -> [B, M, N]."""
    return F.normalize(first, dim=2) @ F.normalize(second, dim=2).transpose(1, 2)


def heatmaps(embeddings: Tensor, positions: Tensor, temperature: float) -> Tensor:
    """Compute soft masks, a softmax over the K regions of cosines / T: [B, K, d], [B, S, d] -> [B, K, S]."""
    return F.softmax(cosines(embeddings, positions) / temperature, dim=1)


def pool(masks: Tensor, features: Tensor) -> Tensor:
    """Average the features of all positions, weighted by each mask: [B, K, S], [B, S, C] -> [B, K, C]."""
    weights = masks / masks.sum(dim=2, keepdim=True).clamp(min=torch.finfo(masks.dtype).tiny)
    return weights @ features


def mask_entropy(masks: Tensor) -> Tensor:
    """Compute the entropy of the masks over regions, mean over positions: [B, K, S] -> scalar, at most log K."""
    return torch.special.entr(masks).sum(dim=1).mean()
