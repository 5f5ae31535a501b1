"""SwAV (Caron et al. 2020, arXiv 2006.09882): predict the cluster assignment of the other view. Two views."""

# n samples of this process, N of all processes, D projection, K prototypes
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.models.backbone import build_method_backbone
from simfle.models.base import Losses, Method, to_fp32
from simfle.models.layers.all_gather import processes
from simfle.models.layers.heads import BackboneWithHead, MLPHead


class SwAV(Method):
    """Backbone, projector and prototypes; assignments by Sinkhorn-Knopp over the micro-batches of all processes."""

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        self.online = BackboneWithHead(backbone, MLPHead(channels, model.head_hidden_dim, model.head_out_dim))
        self.prototypes = Prototypes(model.contrastive.prototypes, model.head_out_dim)

    def forward(self, batch: Batch) -> Losses:
        (y1, z1), (y2, z2) = (
            self.online(self.normalize(view, network_only=True)) for view in (batch.view1, batch.view2)
        )
        self.record_features(features=(y1, y2), projection=(z1, z2))
        scores1, scores2 = self.prototypes(to_fp32(z1)), self.prototypes(to_fp32(z2))  # [n, K]
        contrast = self.config.contrastive
        with torch.no_grad():
            codes1, codes2 = (
                sinkhorn(s.detach(), contrast.sinkhorn_epsilon, contrast.sinkhorn_iterations)
                for s in (scores1, scores2)
            )
        swapped = swapped_prediction(scores1, scores2, codes1, codes2, contrast.temperature)
        return {"prediction": swapped, "total": swapped}


class Prototypes(nn.Module):
    """Cosines of projections with K trained unit vectors: [n, D] -> [n, K].

    The vectors are normalized in each forward pass, not in place after each step as in the authors' code: ZeRO would
    miss that update.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))

    def forward(self, projections: Tensor) -> Tensor:
        with torch.autocast(projections.device.type, enabled=False):
            return F.normalize(projections, dim=1) @ F.normalize(self.weight, dim=1).T


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Compute codes [n, K] of scores [n, K] (equations 3 to 5).

    The codes are exp(scores / epsilon), scaled alternately: each prototype gets an equal share of the N samples of all
    processes, and each sample's code sums to 1, which is enforced last.
    """
    top = _reduced(scores.max(), dist.ReduceOp.MAX)  # cancels out, but keeps exp() within range
    codes = ((scores - top) / epsilon).exp()  # [n, K]
    for _ in range(iterations):
        codes = codes / _reduced(codes.sum(dim=0), dist.ReduceOp.SUM)  # each prototype sums to 1 over all samples
        codes = codes / codes.sum(dim=1, keepdim=True)  # each sample sums to 1 over all prototypes
    return codes


def swapped_prediction(scores1: Tensor, scores2: Tensor, codes1: Tensor, codes2: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy of each view's softmax(scores / T) with the other's codes (equations 1 and 2), all [n,
    K].

    Mean over the batch and over both directions (equation 1 is their sum).
    """
    forth = -(codes2 * F.log_softmax(scores1 / temperature, dim=1)).sum(dim=1)  # [n]
    back = -(codes1 * F.log_softmax(scores2 / temperature, dim=1)).sum(dim=1)
    return (forth + back).mean() / 2


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    """Reduce over all processes."""
    if processes() > 1:
        dist.all_reduce(values, operation)
    return values
