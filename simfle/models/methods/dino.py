"""DINO (Caron et al. 2021, arXiv 2104.14294): predict the teacher's distribution over prototypes for the other view."""

# n samples of this process, C channels, D bottleneck, K prototypes
import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from simfle.batch import Batch
from simfle.config.schema import DINOConfig, ModelConfig, ViewsConfig
from simfle.models.backbone import build_method_backbone, feature_map
from simfle.models.base import Losses, Method, ema_momentum, ema_update, to_fp32
from simfle.models.layers.all_gather import processes
from simfle.models.layers.heads import gelu_head


class DINO(Method):
    """Student `online` and teacher `target`, its moving average, on the paper's two global views, without multi-crop.

    center [K]: moving average of the teacher's mean output over both views, micro-batches and processes of a step
    (equation
    4, algorithm 1). It changes at the end of a step: a loss uses the center of the previous steps.
    progress: completed fraction of the run, which determines the teacher's temperature. Both are saved, so that a
    resumed run is bit-identical.
    """

    replicated_buffers = ("center", "progress")
    center: Tensor
    progress: Tensor

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        backbone = build_method_backbone(model, views)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        head = gelu_head(channels, model.head_hidden_dim, model.head_out_dim)
        self.online = Network(backbone, head, UnitPrototypes(model.dino.prototypes, model.head_out_dim))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.register_buffer("center", torch.zeros(model.dino.prototypes))
        self.register_buffer("progress", torch.zeros(()))
        self._means: list[Tensor] = []  # mean teacher output [K] of each micro-batch of this step

    def forward(self, batch: Batch) -> Losses:
        dino = self.config.dino
        view1, view2 = (self.normalize(view, network_only=True) for view in (batch.view1, batch.view2))
        gate = (self.progress >= dino.frozen_fraction).float() if dino.frozen_fraction else None
        y1, z1, student1 = self.online(view1, gate)
        y2, z2, student2 = self.online(view2, gate)
        self.record_features(features=(y1, y2), projection=(z1, z2))
        with torch.no_grad():
            teacher1, teacher2 = self.target(view1)[2], self.target(view2)[2]  # [n, K]
            if self.training:
                self._means.append((teacher1 + teacher2).mean(dim=0) / 2)
        with torch.autocast(student1.device.type, enabled=False):
            codes1, codes2 = (
                teacher_distribution(teacher, self.center, teacher_temperature(self.progress, dino))
                for teacher in (teacher1, teacher2)
            )
            loss = cross_entropy(student1, student2, codes1, codes2, dino.student_temperature)
            entropy = torch.special.entr(codes1).sum(dim=1).mean() + torch.special.entr(codes2).sum(dim=1).mean()
        # Not a loss: h(P_t) of equation 5, 0 or log K after a collapse.
        return {"cross_entropy": loss, "total": loss, "entropy": entropy / 2}

    @torch.no_grad()
    def on_step_end(self, progress: float = 0.0) -> None:
        ema_update(self.target, self.online, ema_momentum(progress, self.config))
        self.progress.fill_(progress)
        if self._means:
            mean = torch.stack(self._means).mean(dim=0)  # [K]
            if processes() > 1:
                dist.all_reduce(mean)
                mean /= processes()
            self.center.lerp_(mean.to(self.center.dtype), 1 - self.config.dino.center_momentum)
            self._means.clear()


class Network(nn.Module):
    """Backbone, head and prototypes: images [n, 3, H, H] -> y [n, C], unit vectors [n, D], outputs g [n, K]."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, prototypes: "UnitPrototypes") -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.prototypes = prototypes

    def forward(self, images: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, the normalized bottleneck and the outputs; gate: factor of the prototypes' gradient, a scalar."""
        pooled = feature_map(self.backbone, images).mean(dim=(2, 3))  # [n, C]
        unit = F.normalize(to_fp32(self.projector(pooled)), dim=1)  # [n, D]
        return pooled, unit, self.prototypes(unit, gate)


class UnitPrototypes(nn.Module):
    """Weight-normalized last layer, no bias, gain 1: unit vectors [n, D] -> cosines [n, K], in fp32.

    A gain of 1 is the stable choice: the outputs stay within -1 and 1.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))

    def forward(self, unit: Tensor, gate: Tensor | None = None) -> Tensor:
        with torch.autocast(unit.device.type, enabled=False):
            weight = F.normalize(self.weight, dim=1)  # [K, D]
            if gate is not None:  # the value is unchanged: x + g (x - x)
                fixed = weight.detach()
                weight = fixed + gate * (weight - fixed)
            return unit @ weight.T


def teacher_temperature(progress: Tensor, dino: DINOConfig) -> Tensor | float:
    """Return the teacher's temperature at fraction `progress` (scalar tensor) of the run.

    It changes linearly over the first `warmup_fraction` (section 3.2, implementation details).
    """
    if not dino.warmup_fraction:
        return dino.teacher_temperature
    share = (progress / dino.warmup_fraction).clamp(max=1)
    return dino.warmup_teacher_temperature + share * (dino.teacher_temperature - dino.warmup_teacher_temperature)


def teacher_distribution(outputs: Tensor, center: Tensor, temperature: Tensor | float) -> Tensor:
    """Compute P_t = softmax((g - c) / T), centered and sharpened: outputs [n, K], center [K] -> [n, K] (equation 1)."""
    return F.softmax((outputs - center) / temperature, dim=1)


def cross_entropy(student1: Tensor, student2: Tensor, codes1: Tensor, codes2: Tensor, temperature: float) -> Tensor:
    """Compute H(P_t, P_s) of each view's student with the other view's teacher (equations 1 to 3), all [n, K].

    The mean is over the batch and over both pairs of views, as in algorithm 1; equation 3 is the sum over pairs.

    Args:
        student1: outputs of the student for view 1.
        student2: outputs of the student for view 2.
        codes1: distribution of the teacher for view 1.
        codes2: distribution of the teacher for view 2.
        temperature: the student's, above 0.
    """
    forth = -(codes2 * F.log_softmax(student1 / temperature, dim=1)).sum(dim=1)  # [n]
    back = -(codes1 * F.log_softmax(student2 / temperature, dim=1)).sum(dim=1)
    return (forth + back).mean() / 2
