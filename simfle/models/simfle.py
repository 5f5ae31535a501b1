"""SimFLE: BYOL on two views (GFL) and FaceMAE on the face (FFL), tied by a distillation loss. arXiv 2303.07648."""

# B batch, C channels, H x H image, F x F face, h x h feature map, L patches, V visible patches, D FaceMAE's width
import torch
from torch import Tensor

from shards.errors import UserError
from simfle import losses
from simfle.batch import Batch
from simfle.config import ModelConfig, ViewsConfig
from simfle.models.backbone import feature_map_size
from simfle.models.byol import BYOL
from simfle.models.facemae import FaceMAE, patchify
from simfle.models.heads import MLPHead
from simfle.models.masking import MASKINGS, SemanticMasking
from simfle.models.method import Losses, Picture, full


class SimFLE(BYOL):
    """The whole method as one root module: `forward(batch) -> Losses`, then `after_step()` once per optimizer step."""

    images = ("view1", "view2", "face")

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model, views)
        map_side = feature_map_size(self.online.backbone, views.face_size)
        if map_side is None:
            raise UserError(
                f"model.backbone: {model.backbone} makes no feature map of views.face_size={views.face_size}"
            )
        self.facemae = FaceMAE(views.face_size, model.facemae)
        self.masking = SemanticMasking(
            self.channels,
            model.groups,
            model.grouping,
            map_side=map_side,
            face_size=views.face_size,
            patch=model.facemae.patch,
            ratio=model.facemae.mask_ratio,
        )
        if model.facemae.masking not in MASKINGS:
            raise UserError(f"model.facemae.masking is {model.facemae.masking!r}; known are {' and '.join(MASKINGS)}")
        self.masking.choice = model.facemae.masking
        self.distil_global = MLPHead(self.channels, model.hidden, model.projection)
        self.distil_face = MLPHead(model.facemae.width, model.hidden, model.projection)

    def forward(self, batch: Batch) -> Losses:
        view1, view2, face = (self.normalise(images) for images in (batch.view1, batch.view2, batch.face))
        return self.compute(view1, view2, face, batch.draw)

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
            self.picture = Picture(face.detach(), visible, full(prediction).detach(), self.facemae.patch)
        return tokens[:, 1:].mean(dim=1), reconstruction, grouping, overlap
