"""MAE (He et al. 2022, arXiv 2111.06377): reconstruct the pixels of an image from a quarter of its patches."""

# B batch, L patches, V visible patches, D encoder width, P values of a patch
import torch
from torch import Tensor, nn

from simfle.batch import Batch
from simfle.config.schema import ModelConfig, ViewsConfig
from simfle.models import losses
from simfle.models.backbone import build_vit
from simfle.models.base import Losses, Method, Reconstruction, to_fp32
from simfle.models.layers.facemae import MaskedDecoder, check_width, patchify, sincos_positions, xavier
from simfle.models.layers.masking import random_patches, visible_patches


class MAE(Method):
    """Timm ViT on the visible patches of view 1, and a light decoder; the mask is a function of the draw."""

    images = ("view1",)

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__(model)
        self.online = VisibleEncoder(model.backbone, views.size)
        self.patch_size = self.online.patch
        self.visible = visible_patches(views.size, self.patch_size, model.facemae.mask_ratio)
        self.decoder = Decoder(views.size // self.patch_size, self.patch_size, self.online.width, model)

    def forward(self, batch: Batch) -> Losses:
        view = self.normalize(batch.view1)
        patches = patchify(view, self.patch_size)  # [B, L, P]
        visible = random_patches(batch.mask_uniform, patches.shape[1], self.visible)  # [B, V]
        tokens = self.online(view, visible)  # [B, 1 + V, D]
        self.record_features(features=(tokens[:, 1:].mean(dim=1),))
        prediction = to_fp32(self.decoder(tokens, visible))  # [B, L, P]
        mask = torch.ones_like(patches[:, :, 0]).scatter(1, visible, 0.0)  # [B, L], 1 where masked
        reconstruction = losses.reconstruction(prediction, patches, mask)
        if self.capture_reconstruction:
            self.reconstruction = Reconstruction(view, visible, prediction.detach(), self.patch_size)
        return {"reconstruction": reconstruction, "total": reconstruction}


class VisibleEncoder(nn.Module):
    """Timm ViT with fixed sine-cosine positions: images [B, 3, H, H], visible [B, V] -> tokens [B, 1 + V, D]."""

    def __init__(self, name: str, side: int) -> None:
        super().__init__()
        self.backbone = build_vit(name, side)
        self.width = self.backbone.embed_dim
        self.patch = int(self.backbone.patch_embed.patch_size[0])
        check_width("model.backbone: its width", self.width, 1)
        self.backbone.apply(xavier)
        nn.init.normal_(self.backbone.cls_token, std=0.02)
        positions = sincos_positions(side // self.patch, self.width)[None]  # [1, 1 + L, D]
        self.backbone.pos_embed = nn.Parameter(positions, requires_grad=False)  # saved in checkpoints for timm

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        vit = self.backbone
        positions = vit.pos_embed.to(images.dtype)  # [1, 1 + L, D]
        tokens = vit.patch_embed(images) + positions[:, 1:]  # [B, L, D]
        seen = tokens.gather(1, visible[:, :, None].expand(-1, -1, self.width))  # [B, V, D]
        first = (vit.cls_token + positions[:, :1]).expand(len(seen), -1, -1).to(seen.dtype)  # [B, 1, D]
        return vit.norm(vit.blocks(vit.norm_pre(torch.cat([first, seen], dim=1))))


class Decoder(MaskedDecoder):
    """Decoder: tokens [B, 1 + V, D], visible [B, V] -> predicted patches [B, L, P]."""

    def __init__(self, side: int, patch: int, width: int, model: ModelConfig) -> None:
        super().__init__()
        self.build_decoder(side, patch, width, model.facemae)
        self.apply(xavier)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        return self.decode(tokens, visible)
