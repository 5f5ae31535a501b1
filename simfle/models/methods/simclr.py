"""SimCLR (Chen et al. 2020, arXiv 2002.05709): distinguish the other view of an image from views of other images."""

# n samples of this process, N of all processes, D projection
import torch
import torch.nn.functional as F
from torch import Tensor

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.models.backbone import build_method_backbone
from simfle.models.base import Losses, Method, to_fp32
from simfle.models.layers.all_gather import all_gather_with_grad, rank
from simfle.models.layers.heads import BackboneWithHead, mlp_head_no_bn


class SimCLR(Method):
    """Backbone and a two-layer projector; negatives come from the micro-batches of all processes."""

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        self.online = BackboneWithHead(backbone, mlp_head_no_bn(channels, model.head_hidden_dim, model.head_out_dim))

    def forward(self, batch: Batch) -> Losses:
        (y1, z1), (y2, z2) = (
            self.online(self.normalize(view, network_only=True)) for view in (batch.view1, batch.view2)
        )
        z1, z2 = to_fp32(z1), to_fp32(z2)  # [n, D]
        self.record_features(features=(y1, y2), projection=(z1, z2))
        with torch.autocast(z1.device.type, enabled=False):
            contrast = nt_xent(z1, z2, self.config.contrastive.temperature)
        return {"contrast": contrast, "total": contrast}


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent (equation 1), mean over this process's 2 n anchors; z1, z2 [n, D].

    Each anchor is compared with the 2 N - 1 other views of all processes. Averaged over processes, loss and gradients
    are those of the whole batch.
    """
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    everyone = torch.cat([all_gather_with_grad(z1), all_gather_with_grad(z2)])  # [2 N, D]
    logits = torch.cat([z1, z2]) @ everyone.T / temperature  # [2 n, 2 N]
    first = rank() * len(z1) + torch.arange(len(z1), device=z1.device)  # [n], this process's rows in view 1
    second = first + len(everyone) // 2
    itself, other = torch.cat([first, second]), torch.cat([second, first])  # [2 n]
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits, other)
