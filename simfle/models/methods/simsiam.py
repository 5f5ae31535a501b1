"""SimSiam (Chen and He 2021, arXiv 2011.10566): predictor and stop-gradient, without negatives."""

# B batch, D projection
import torch.nn.functional as F
from torch import Tensor

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.models.backbone import build_method_backbone
from simfle.models.base import Losses, Method, to_fp32
from simfle.models.layers.heads import BackboneWithHead, MLPHead, three_layer_head


class SimSiam(Method):
    """f = backbone and a three-layer projector, h = a two-layer bottleneck predictor."""

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        self.online = BackboneWithHead(backbone, three_layer_head(channels, model.head_hidden_dim, model.head_out_dim))
        self.predictor = MLPHead(model.head_out_dim, model.predictor_hidden_dim, model.head_out_dim)

    def forward(self, batch: Batch) -> Losses:
        (y1, z1), (y2, z2) = (
            self.online(self.normalize(view, network_only=True)) for view in (batch.view1, batch.view2)
        )  # z [B, D]
        self.record_features(features=(y1, y2), projection=(z1, z2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        similarity = (distance(to_fp32(p1), to_fp32(z2)) + distance(to_fp32(p2), to_fp32(z1))) / 2
        return {"similarity": similarity, "total": similarity, "spread": feature_spread(to_fp32(z1.detach()))}


def distance(prediction: Tensor, projection: Tensor) -> Tensor:
    """Compute D(p, stopgrad(z)) = -cos(p, z), mean over the batch, -1 to 1; both [B, D] (equations 1 and 3)."""
    return -F.cosine_similarity(prediction, projection.detach(), dim=1).mean()


def feature_spread(projection: Tensor) -> Tensor:
    """Compute a collapse measure, not a loss: std over the batch of unit vectors [B, D], times sqrt(D).

    The value is 0 if all outputs are equal, near 1 if they are spread evenly (section 4.1).
    """
    unit = F.normalize(projection, dim=1)
    return unit.std(dim=0, correction=0).mean() * projection.shape[1] ** 0.5
