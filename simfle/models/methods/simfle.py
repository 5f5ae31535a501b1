"""SimFLE (arXiv 2303.07648): BYOL on two views (GFL) and FaceMAE on the face (FFL), with a distillation loss."""

# B batch, C channels, H x H image, F x F face, h x h feature map, L patches, V visible patches, D FaceMAE's width
import torch
from torch import Tensor, nn

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.models import losses
from simfle.models.backbone import feature_map, feature_map_size, require_feature_map
from simfle.models.base import Losses, Reconstruction, to_fp32
from simfle.models.layers.facemae import FaceMAE, patchify
from simfle.models.layers.heads import MLPHead
from simfle.models.layers.masking import SemanticMasking
from simfle.models.methods.byol import BYOL


class SimFLE(BYOL):
    """SimFLE as one root module: `forward(batch) -> Losses`, then `on_step_end()` once per optimizer step."""

    images = ("view1", "view2", "face")

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model, views)
        map_side = require_feature_map(self.online.backbone, model.backbone, "views.face_size", views.face_size)
        context = feature_map_size(self.online.backbone, views.size) if model.facemae.cross_attention else None
        self.facemae = FaceMAE(views.face_size, model.facemae, (self.channels, context) if context else None)
        self.masking = SemanticMasking(
            self.channels,
            model.mask_groups,
            model.grouping_init,
            map_side=map_side,
            face_size=views.face_size,
            patch=model.facemae.patch_size,
            ratio=model.facemae.mask_ratio,
        )
        self.masking.choice = model.facemae.masking
        if model.distillation == "reference":
            self.distil_global = MLPHead(self.channels, model.head_hidden_dim, model.head_out_dim)
            self.distil_face = MLPHead(model.facemae.embed_dim, model.head_hidden_dim, model.head_out_dim)
        else:
            self.distil_global = MLPHead(self.channels, model.head_hidden_dim, model.facemae.embed_dim)
            self.standardize = nn.BatchNorm1d(model.facemae.embed_dim, affine=False)

    def forward(self, batch: Batch) -> Losses:
        view1, view2 = (self.normalize(images, network_only=True) for images in (batch.view1, batch.view2))
        return self.compute(view1, view2, self.normalize(batch.face), batch.mask_uniform)

    def compute(self, view1: Tensor, view2: Tensor, face: Tensor, draw: Tensor) -> Losses:
        """Compute the losses of normalized images: views [B, 3, H, H], face [B, 3, F, F], draw [B] in [0, 1)."""
        views = self.global_branch(view1, view2)
        loss: Losses = dict(views.losses)
        context = torch.stack(views.maps, dim=1) if self.config.facemae.cross_attention else None  # [B, 2, C, h, h]
        summary, loss["reconstruction"], loss["grouping"], overlap = self.face_branch(face, draw, context)
        self.record_features(face=(summary,))
        loss["distillation"] = self.distillation(views.pooled, summary)
        loss["total"] = (
            views.total
            + loss["reconstruction"]
            + self.config.distillation_weight * loss["distillation"]
            + self.config.grouping_weight * loss["grouping"]
        )
        loss["overlap"] = overlap  # not part of the total: a measure that the grouping loss reduces
        return loss

    def distillation(self, pooled: tuple[Tensor, Tensor], summary: Tensor) -> Tensor:
        """Compute the loss between both branches: y of both views [B, C] and FaceMAE's mean token [B, D].

        distillation=reference: the paper's divergence of three heads from their mean, which heads with constant outputs
        minimize. distillation=predict: a head on each view predicts the token, which receives no gradient and is
        standardized per dimension, so that a constant output is not a minimum. The loss is 2 - 2 cos, averaged over
        both views.
        """
        if self.config.distillation == "reference":
            branches = (*map(self.distil_global, pooled), self.distil_face(summary))
            return losses.distillation([to_fp32(branch) for branch in branches], self.config.distillation_temperature)
        with torch.autocast(summary.device.type, enabled=False):
            target = self.standardize(to_fp32(summary.detach()))
        first, second = (losses.similarity(to_fp32(self.distil_global(each)), target) for each in pooled)
        return (first + second) / 2

    def face_branch(
        self, face: Tensor, draw: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the face branch (FFL): mean of the encoder's patch tokens [B, D], reconstruction loss, grouping loss,
        overlap."""
        with torch.no_grad():
            features = feature_map(self.online.backbone, face)  # [B, C, h, h]
        visible, grouping, overlap = self.masking(features, draw)
        patches = patchify(face, self.facemae.patch)  # [B, L, P]
        tokens, prediction = self.facemae(patches, visible, context)
        mask = torch.ones_like(patches[:, :, 0]).scatter(1, visible, 0.0)  # [B, L], 1 where masked
        reconstruction = losses.reconstruction(to_fp32(prediction), patches, mask)
        if self.capture_reconstruction:
            self.reconstruction = Reconstruction(
                face.detach(), visible, to_fp32(prediction).detach(), self.facemae.patch
            )
        return tokens[:, 1:].mean(dim=1), reconstruction, grouping, overlap
