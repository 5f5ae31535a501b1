"""MoCo v3 (Chen, Xie, He 2021, arXiv 2104.02057): InfoNCE between queries and the batch's keys, without a queue."""

# n samples of this process, N of all processes, D projection
import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.models.backbone import build_method_backbone
from simfle.models.base import Losses, Method, ema_momentum, ema_update, to_fp32
from simfle.models.layers.all_gather import all_gather_with_grad, rank
from simfle.models.layers.heads import BackboneWithHead, normed_head


class MoCoV3(Method):
    """Query encoder `online` with a predictor, and key encoder `target`, the moving average of the query encoder.

    Keys are those of the micro-batches of all processes. `model.freeze_patch_embed` is the paper's fixed patch
    projection (section 4).
    """

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        hidden, out = model.head_hidden_dim, model.head_out_dim
        self.online = BackboneWithHead(backbone, normed_head(channels, hidden, out, layers=3))
        self.predictor = normed_head(out, hidden, out, layers=2)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, batch: Batch) -> Losses:
        view1, view2 = (self.normalize(view, network_only=True) for view in (batch.view1, batch.view2))
        (y1, z1), (y2, z2) = self.online(view1), self.online(view2)
        self.record_features(features=(y1, y2), projection=(z1, z2))
        query1, query2 = (to_fp32(self.predictor(z)) for z in (z1, z2))  # [n, D]
        with torch.no_grad():
            key1, key2 = (to_fp32(self.target(view)[1]) for view in (view1, view2))  # [n, D]
        temperature = self.config.contrastive.temperature
        with torch.autocast(query1.device.type, enabled=False):
            forth, right1 = contrast(query1, key2, temperature)
            back, right2 = contrast(query2, key1, temperature)
        return {"contrast": forth + back, "total": forth + back, "accuracy": (right1 + right2) / 2}

    def on_step_end(self, progress: float = 0.0) -> None:
        ema_update(self.target, self.online, ema_momentum(progress, self.config))


def contrast(query: Tensor, key: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute 2 T times InfoNCE (equation 1; the factor is that of algorithm 1), and the accuracy.

    The positive of a query [n, D] is its own sample's key [n, D]; negatives are the N - 1 other keys of all processes.
    Both are normalized here; only the query gets a gradient. The mean over processes is the loss of the whole batch.

    Returns:
        The mean over the queries, and the fraction of queries that are nearest to their own key.
    """
    query, key = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1)
    logits = query @ all_gather_with_grad(key).T / temperature  # [n, N]
    label = rank() * len(query) + torch.arange(len(query), device=query.device)  # [n]
    accuracy = (logits.detach().argmax(dim=1) == label).to(logits.dtype).mean()
    return 2 * temperature * F.cross_entropy(logits, label), accuracy
