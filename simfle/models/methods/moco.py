"""MoCo v2 (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297): a queue of keys as negatives."""

# n samples of this process's micro-batch, N of the global batch, K keys in the queue, D projection
import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.models.backbone import build_method_backbone
from simfle.models.base import Losses, Method, ema_momentum, ema_update, to_fp32
from simfle.models.layers.all_gather import all_gather_with_grad
from simfle.models.layers.heads import BackboneWithHead, mlp_head_no_bn


class MoCo(Method):
    """Query encoder `online`, key encoder `target` (its moving average), and the queue, oldest keys first.

    All keys of an optimizer step enter the queue after the step, in the order of the global batch, so the queue does
    not depend on the number of processes and micro-batches.

    The paper shuffles samples among GPUs (section 3.3), so that BatchNorm does not reveal which key shares a batch with
    the query. Instead, each process shuffles its micro-batch and runs the key encoder on
    `contrastive.shuffle_bn_splits` parts of it. This works on one GPU and needs no communication. The order is a
    function of the samples' random words.
    """

    replicated_buffers = ("queue",)
    queue: Tensor

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        self.online = BackboneWithHead(backbone, mlp_head_no_bn(channels, model.head_hidden_dim, model.head_out_dim))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(model.contrastive.queue_size, model.head_out_dim), dim=1))
        self._fresh: list[Tensor] = []

    def forward(self, batch: Batch) -> Losses:
        pooled, projected = self.online(self.normalize(batch.view1, network_only=True))
        query = F.normalize(to_fp32(projected), dim=1)  # [n, D]
        with torch.no_grad():
            key = F.normalize(
                self.keys(self.normalize(batch.view2, network_only=True), batch.mask_uniform), dim=1
            )  # [n, D]
        self.record_features(features=(pooled,), projection=(query, key))
        if self.training:
            self._fresh.append(key)
        with torch.autocast(query.device.type, enabled=False):
            contrast, accuracy = info_nce(query, key, self.queue, self.config.contrastive.temperature)
        return {"contrast": contrast, "total": contrast, "accuracy": accuracy}

    def keys(self, view: Tensor, draw: Tensor) -> Tensor:
        """Return projections [n, D] by the key encoder, in shuffled parts of at least two samples."""
        order = draw.argsort(stable=True)
        parts = max(1, min(self.config.contrastive.shuffle_bn_splits, len(view) // 2))
        shuffled = torch.cat([to_fp32(self.target(part)[1]) for part in view[order].tensor_split(parts)])
        return shuffled[order.argsort()]

    @torch.no_grad()
    def on_step_end(self, progress: float = 0.0) -> None:
        ema_update(self.target, self.online, ema_momentum(progress, self.config))
        fresh = all_gather_with_grad(
            torch.cat(self._fresh)
        )  # [N, D], ranks first, then micro-batches: the order of the batch
        self.queue.copy_(torch.cat([self.queue, fresh.to(self.queue.dtype)])[-len(self.queue) :])
        self._fresh.clear()


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute InfoNCE (equation 1), averaged over the batch, and the fraction of queries nearest to their own key.

    query, key [n, D] and queue [K, D], all of unit length; only the query gets a gradient.
    """
    positive = (query * key.detach()).sum(dim=1, keepdim=True)  # [n, 1]
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature  # [n, 1 + K]
    label = torch.zeros(len(query), dtype=torch.long, device=query.device)
    accuracy = (logits.detach().argmax(dim=1) == label).to(logits.dtype).mean()
    return F.cross_entropy(logits, label), accuracy
