"""SimFLE: BYOL on two views (GFL) and FaceMAE on the face (FFL), tied by a distillation loss. arXiv 2303.07648."""

# B batch, C channels, H x H image, h x h feature map, L patches, V visible patches, D FaceMAE's width
import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shards.errors import UserError
from simfle import losses
from simfle.batch import Batch
from simfle.config import ModelConfig, ViewsConfig
from simfle.models.backbone import build_backbone, feature_map_size
from simfle.models.facemae import FaceMAE, patchify
from simfle.models.heads import MLPHead
from simfle.models.masking import SemanticMasking

Losses = dict[str, Tensor]
"""Named scalars from the paper, `total`, and measures. A dict: ZeRO stage 3 finds tensors in nothing fancier."""


@dataclass
class Picture:
    """What FaceMAE saw and made in one forward: face [B, 3, F, F] normalised, visible [B, V], prediction [B, L, P]."""

    face: Tensor
    visible: Tensor
    prediction: Tensor


class Encoder(nn.Module):
    """Backbone, global average pool, projector: images [B, 3, H, H] -> y [B, C] and projection [B, out]."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.backbone(images).mean(dim=(2, 3))  # [B, C]
        return pooled, self.projector(pooled)


class SimFLE(nn.Module):
    """The whole method as one root module: `forward(batch) -> Losses`, then `after_step()` once per optimizer step."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__()
        self.config = model
        backbone = build_backbone(model.backbone)
        channels = int(backbone.num_features)  # type: ignore[arg-type]
        map_side = feature_map_size(backbone, views.face_size)
        if map_side is None:
            raise UserError(
                f"model.backbone: {model.backbone} makes no feature map of views.face_size={views.face_size}"
            )
        self.online = Encoder(backbone, MLPHead(channels, model.hidden, model.projection))
        self.predictor = MLPHead(model.projection, model.hidden, model.projection)
        self.facemae = FaceMAE(views.face_size, model.facemae)
        self.masking = SemanticMasking(
            channels,
            model.groups,
            model.grouping,
            map_side=map_side,
            face_size=views.face_size,
            patch=model.facemae.patch,
            ratio=model.facemae.mask_ratio,
        )
        self.distil_global = MLPHead(channels, model.hidden, model.projection)
        self.distil_face = MLPHead(model.facemae.width, model.hidden, model.projection)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.register_buffer("mean", torch.tensor(model.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(model.std).view(1, 3, 1, 1), persistent=False)
        self.keep_picture = False
        self.picture: Picture | None = None

    def forward(self, batch: Batch) -> Losses:
        view1, view2, face = (self.normalise(images) for images in (batch.view1, batch.view2, batch.face))
        return self.compute(view1, view2, face, batch.draw)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, H] -> zero mean, unit variance; the memory format stays."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    def compute(self, view1: Tensor, view2: Tensor, face: Tensor, draw: Tensor) -> Losses:
        """Losses of normalised images: views [B, 3, H, H], face [B, 3, F, F], draw [B] in [0, 1)."""
        loss: Losses = {}
        pooled1, pooled2, loss["similarity"] = self.global_branch(view1, view2)
        summary, loss["reconstruction"], loss["grouping"], overlap = self.face_branch(face, draw)
        branches = (self.distil_global(pooled1), self.distil_global(pooled2), self.distil_face(summary))
        loss["distillation"] = losses.distillation([full(branch) for branch in branches], self.config.temperature)
        loss["total"] = (
            loss["similarity"]
            + loss["reconstruction"]
            + self.config.alpha * loss["distillation"]
            + self.config.beta * loss["grouping"]
        )
        loss["overlap"] = overlap  # no loss, but what the grouping loss is there for
        return loss

    def global_branch(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """GFL: -> y of both views [B, C] and the similarity loss. BatchNorm sees one view at a time."""
        pooled1, projected1 = self.online(view1)
        pooled2, projected2 = self.online(view2)
        prediction1, prediction2 = self.predictor(projected1), self.predictor(projected2)
        with torch.no_grad():
            target1, target2 = self.target(view1)[1], self.target(view2)[1]
        forth = losses.similarity(full(prediction1), full(target2))
        back = losses.similarity(full(prediction2), full(target1))
        return pooled1, pooled2, forth + back

    def face_branch(self, face: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """FFL: -> mean of the encoder's patch tokens [B, D], reconstruction loss, grouping loss, groups' overlap."""
        with torch.no_grad():
            features = self.online.backbone(face)  # [B, C, h, h]
        visible, grouping, overlap = self.masking(features, draw)
        patches = patchify(face, self.facemae.patch)  # [B, L, P]
        tokens, prediction = self.facemae(patches, visible)
        mask = torch.ones_like(patches[:, :, 0]).scatter(1, visible, 0.0)  # [B, L], 1 where masked
        reconstruction = losses.reconstruction(full(prediction), patches, mask)
        if self.keep_picture:
            self.picture = Picture(face.detach(), visible, full(prediction).detach())
        return tokens[:, 1:].mean(dim=1), reconstruction, grouping, overlap

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the target network: target = m target + (1 - m) online, parameters only, in fp32."""
        pairs = zip(self.target.parameters(), self.online.parameters(), strict=True)
        targets, onlines = zip(*((local(target), local(online)) for target, online in pairs), strict=True)
        torch._foreach_lerp_(list(targets), list(onlines), 1 - self.config.momentum)


def full(tensor: Tensor) -> Tensor:
    """Out of autocast's bf16: losses are computed in fp32, or fp64 where the model runs in it."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def local(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter: its ZeRO stage 3 partition, else all of it.

    Online and target are partitioned alike, and an EMA is elementwise: no gathering needed.
    """
    return getattr(parameter, "ds_tensor", parameter.data)
