"""Reference implementation of SimFLE, close to the paper and not optimized: fp32, channels first.

This is the baseline of `simfle bench step`. Parameters have the names of the real model (with
model.grouping_init=reference): a test loads the same weights into both models and compares the losses.
"""

# B batch, C channels, G groups, h x h feature map, L patches, V visible, D width, d decoder width
import copy
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from simfle.batch import Batch
from simfle.config.schema import FaceMAEConfig, ModelConfig, ViewsConfig
from simfle.models.backbone import build_backbone, feature_map
from simfle.models.layers.facemae import sincos_positions


class ReferenceEncoder(nn.Module):
    """Backbone, pooling, projector."""

    def __init__(self, model: ModelConfig, size: int) -> None:
        super().__init__()
        self.backbone = build_backbone(model.backbone, model.output_stride, size)
        self.projector = _head(int(self.backbone.num_features), model)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images [B, 3, H, H] -> y [B, C], projection [B, out]."""
        pooled = F.adaptive_avg_pool2d(feature_map(self.backbone, images), 1).flatten(1)
        return pooled, self.projector(pooled)


class ReferenceFaceMAE(nn.Module):
    """Masked autoencoder that embeds all patches and then keeps the visible ones."""

    positions: Tensor
    decoder_positions: Tensor

    def __init__(self, side: int, config: FaceMAEConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        d, decoder = config.embed_dim, config.decoder_embed_dim
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, d, config.patch_size, stride=config.patch_size)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.blocks = nn.Sequential(*(_block(d, config.num_heads) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.decoder_embed = nn.Linear(d, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_blocks = nn.Sequential(
            *(_block(decoder, config.decoder_num_heads) for _ in range(config.decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(decoder, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder, config.patch_size**2 * 3)
        self.register_buffer("positions", sincos_positions(side, d), persistent=False)
        self.register_buffer("decoder_positions", sincos_positions(side, decoder), persistent=False)

    def forward(self, face: Tensor, order: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """Encode face [B, 3, F, F]; order [B, L], patches by falling score -> tokens [B, 1 + V, D], prediction [B, L,
        P]."""
        tokens = self.patch_embed(face).flatten(2).transpose(1, 2) + self.positions[1:]  # [B, L, D]
        tokens = tokens.gather(1, order[:, :seen, None].expand(-1, -1, tokens.shape[2]))  # [B, V, D]
        first = (self.cls_token + self.positions[:1]).expand(len(tokens), -1, -1)
        tokens = self.norm(self.blocks(torch.cat([first, tokens], 1)))  # [B, 1 + V, D]
        small = self.decoder_embed(tokens)
        masked = self.mask_token.expand(len(small), order.shape[1] - seen, -1)
        full = torch.cat([small[:, 1:], masked], 1)  # [B, L, d], by falling score
        back = order.argsort(dim=1)
        full = full.gather(1, back[:, :, None].expand(-1, -1, full.shape[2]))  # restores the order of positions
        full = torch.cat([small[:, :1], full], 1) + self.decoder_positions
        return tokens, self.decoder_pred(self.decoder_norm(self.decoder_blocks(full)))[:, 1:]


class ReferenceSimFLE(nn.Module):
    """`forward(batch)` -> total loss; `move_target()` after each optimizer step."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: ModelConfig, views: ViewsConfig) -> None:
        super().__init__()
        self.config, self.size = model, views.face_size
        self.online = ReferenceEncoder(model, views.size)
        channels = int(self.online.backbone.num_features)  # type: ignore[arg-type]
        self.predictor = _head(model.head_out_dim, model)
        self.facemae = ReferenceFaceMAE(views.face_size // model.facemae.patch_size, model.facemae)
        convolution = nn.Conv2d(channels, channels, 1)
        nn.init.constant_(convolution.weight, 1.0)
        nn.init.constant_(convolution.bias, 0.1)  # type: ignore[arg-type]
        grouping = OrderedDict(convolution=convolution, norm=nn.BatchNorm2d(channels))
        self.masking = nn.ModuleDict({"grouping": nn.Sequential(grouping)})
        self.distil_global = _head(channels, model)
        self.distil_face = _head(model.facemae.embed_dim, model)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.register_buffer("mean", torch.tensor(model.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(model.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        view1, view2, face = (
            (images.to(self.mean.dtype).contiguous() / 255 - self.mean) / self.std
            for images in (batch.view1, batch.view2, batch.face)
        )
        y1, z1 = self.online(view1)
        y2, z2 = self.online(view2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1, t2 = self.target(view1)[1], self.target(view2)[1]
        similarity = (2 - 2 * F.cosine_similarity(p1, t2)).mean() + (2 - 2 * F.cosine_similarity(p2, t1)).mean()
        with torch.no_grad():
            features = self.online.backbone(face)
        maps = F.relu(self.masking["grouping"](features))  # [B, C, h, h]
        order = self.patches_by_score(maps.detach(), batch.mask_uniform)
        patches = (self.size // self.facemae.patch) ** 2
        seen = int(patches * (1 - self.config.facemae.mask_ratio))
        tokens, prediction = self.facemae(face, order, seen)
        reconstruction = self.reconstruction(face, prediction, order, seen)
        branches = [self.distil_global(y1), self.distil_global(y2), self.distil_face(tokens[:, 1:].mean(1))]
        distillation = self.distillation(branches)
        return (
            similarity
            + reconstruction
            + self.config.distillation_weight * distillation
            + self.config.grouping_weight * self.grouping_loss(maps)
        )

    def patches_by_score(self, maps: Tensor, draw: Tensor) -> Tensor:
        """Upsample the selected group's summed map to the face, average per patch, sort: [B, C, h, h] -> [B, L]."""
        grouped = maps.unflatten(1, (self.config.mask_groups, -1)).sum(2)  # [B, G, h, h]
        chosen = grouped[torch.arange(len(maps)), (draw * self.config.mask_groups).long()]  # [B, h, h]
        image = F.interpolate(chosen[:, None], size=(self.size, self.size), mode="bilinear", align_corners=False)
        scores = F.avg_pool2d(image, self.facemae.patch).flatten(1)  # [B, L]
        return scores.argsort(dim=1, descending=True, stable=True)

    def reconstruction(self, face: Tensor, prediction: Tensor, order: Tensor, seen: int) -> Tensor:
        """Compute the squared error on masked patches, with pixels normalized per patch."""
        side, p = self.size // self.facemae.patch, self.facemae.patch
        patches = face.reshape(len(face), 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        wanted = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
        mask = torch.ones_like(patches[:, :, 0]).scatter(1, order[:, :seen], 0.0)
        return ((prediction - wanted).square().mean(2) * mask).sum() / mask.sum()

    def distillation(self, branches: list[Tensor]) -> Tensor:
        """Compute the KL divergence of each branch to the mean of the three."""
        t = self.config.distillation_temperature
        teacher = F.softmax(torch.stack(branches).mean(0).detach() / t, 1)
        terms = [F.kl_div(F.log_softmax(branch / t, 1), teacher, reduction="batchmean") for branch in branches]
        return torch.stack(terms).sum() * t**2

    def grouping_loss(self, maps: Tensor) -> Tensor:
        """Compute the grouping loss from R of all channels, one C x C product per image."""
        unit = F.normalize(maps.flatten(2) + 0.001, dim=2)  # [B, C, h h]
        r = torch.bmm(unit, unit.transpose(1, 2)).mean(0)  # [C, C]
        channels = len(r)
        owner = torch.arange(channels, device=r.device) // (channels // self.config.mask_groups)
        same = (owner[:, None] == owner[None]).to(r.dtype)
        return (0.001 * (r - same).square().sum() / (channels / 512) ** 2).square()

    @torch.no_grad()
    def move_target(self) -> None:
        """Update the EMA, parameter by parameter."""
        m = self.config.ema_momentum
        for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
            target.data = m * target.data + (1 - m) * online.data


def _head(width: int, model: ModelConfig) -> nn.Module:
    layers = (nn.Linear(width, model.head_hidden_dim), nn.BatchNorm1d(model.head_hidden_dim), nn.ReLU())
    return nn.Sequential(OrderedDict(net=nn.Sequential(*layers, nn.Linear(model.head_hidden_dim, model.head_out_dim))))


def _block(width: int, heads: int) -> Block:
    norm = partial(nn.LayerNorm, eps=1e-6)
    return Block(width, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)  # type: ignore[arg-type]
