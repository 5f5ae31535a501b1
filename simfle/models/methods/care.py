"""CARE (Ge et al. 2021, arXiv 2110.05340): a transformer on the CNN's feature map supervises the CNN's projection.

As in the paper, there is a CNN stream as in BYOL, and a transformer stream on the feature maps of both CNN encoders,
with two transformers, two projectors and a predictor. The loss is L = L_C + L_T + lambda L_att, and only the CNN is
kept. Unlike the paper, which uses bottleneck blocks with attention, this project uses pre-norm ViT blocks with fixed
sine-cosine positions and a mean over positions. L_att has no gradient to the transformer and uses the online network's
projections.
"""

# B batch, C channels, h x h feature map, S = h h positions, d width of the transformer, D projection
import copy

import torch
from torch import Tensor, nn

from simfle.batch import Batch
from simfle.config.schema import CAREConfig, ModelConfig, ViewsConfig
from simfle.models import losses
from simfle.models.backbone import build_method_backbone, feature_map, require_feature_map
from simfle.models.base import Losses, Method, ema_momentum, ema_update, to_fp32
from simfle.models.layers.facemae import block, check_width, sincos_positions, xavier
from simfle.models.layers.heads import MLPHead


class CARE(Method):
    """Both streams of the online network, a predictor for each, and the target network, a moving average."""

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        check_width("model.care.embed_dim", model.care.embed_dim, model.care.num_heads)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        side = require_feature_map(backbone, model.backbone, "views.size", views.size)
        hidden, out = model.head_hidden_dim, model.head_out_dim
        stream = TransformerStream(channels, side, model.care, MLPHead(model.care.embed_dim, hidden, out))
        self.online = TwoStreams(backbone, MLPHead(channels, hidden, out), stream)
        self.predictor = nn.ModuleDict({name: MLPHead(out, hidden, out) for name in ("cnn", "transformer")})
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, batch: Batch) -> Losses:
        view1, view2 = (self.normalize(view, network_only=True) for view in (batch.view1, batch.view2))
        y1, c1, t1 = self.online(view1)  # [B, C], [B, D], [B, D]
        y2, c2, t2 = self.online(view2)
        self.record_features(features=(y1, y2), projection=(c1, c2), transformer=(t1, t2))
        with torch.no_grad():
            _, target_c1, target_t1 = self.target(view1)
            _, target_c2, target_t2 = self.target(view2)
        cnn = both_ways(self.predictor["cnn"](c1), self.predictor["cnn"](c2), target_c1, target_c2)
        transformer = both_ways(
            self.predictor["transformer"](t1), self.predictor["transformer"](t2), target_t1, target_t2
        )
        attention = attention_loss(to_fp32(c1), to_fp32(t1)) + attention_loss(to_fp32(c2), to_fp32(t2))
        total = cnn + transformer + self.config.care.attention_weight * attention
        return {"similarity": cnn, "transformer": transformer, "attention": attention, "total": total}

    def on_step_end(self, progress: float = 0.0) -> None:
        ema_update(self.target, self.online, ema_momentum(progress, self.config))


class TwoStreams(nn.Module):
    """Two streams: images [B, 3, H, H] -> y [B, C], projections of the CNN and of the transformer stream [B, D]
    each."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, transformer: "TransformerStream") -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.transformer = transformer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = feature_map(self.backbone, images)  # [B, C, h, h]
        pooled = maps.mean(dim=(2, 3))  # [B, C]
        return pooled, self.projector(pooled), self.transformer(maps)


class TransformerStream(nn.Module):
    """Attention over the positions of a feature map, and a projector: [B, C, h, h] -> [B, D]."""

    positions: Tensor

    def __init__(self, channels: int, side: int, care: CAREConfig, projector: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, care.embed_dim)
        self.blocks = nn.Sequential(*(block(care.embed_dim, care.num_heads) for _ in range(care.depth)))
        self.norm = nn.LayerNorm(care.embed_dim, eps=1e-6)
        self.register_buffer("positions", sincos_positions(side, care.embed_dim)[1:], persistent=False)  # [S, d]
        self.apply(xavier)
        self.projector = projector

    def forward(self, maps: Tensor) -> Tensor:
        tokens = self.embed(maps.flatten(2).transpose(1, 2)) + self.positions  # [B, S, d]
        return self.projector(self.norm(self.blocks(tokens)).mean(dim=1))


def both_ways(prediction1: Tensor, prediction2: Tensor, target1: Tensor, target2: Tensor) -> Tensor:
    """Compute BYOL's distance of each view's prediction to the other view's target, summed; all [B, D] (L_C, L_T)."""
    forth = losses.similarity(to_fp32(prediction1), to_fp32(target2))
    return forth + losses.similarity(to_fp32(prediction2), to_fp32(target1))


def attention_loss(projection: Tensor, transformer: Tensor) -> Tensor:
    """Compute 2 - 2 cos of a view's two projections [B, D], batch mean; only the CNN's gets a gradient (L_att)."""
    return losses.similarity(projection, transformer.detach())
