"""FaceMAE: a masked autoencoder (He et al. 2022) whose visible patches are an input."""

# B batch, L patches, V visible patches, D encoder width, d decoder width, P = patch patch 3 values of a patch, C
# channels and h x h positions of a feature map, S = h h
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from shards.errors import UserError
from simfle.config.schema import FaceMAEConfig


class MaskedDecoder(nn.Module):
    """Decoder of a masked autoencoder, shared by FaceMAE and MAE."""

    decoder_positions: Tensor
    attention: nn.Module

    def build_decoder(self, side: int, patch: int, width: int, config: FaceMAEConfig) -> None:
        """Build the decoder for an encoder of `width` on side x side patches.

        Args:
            side: patches per side.
            patch: patch side in pixels.
            width: encoder width.
            config: decoder configuration.

        Raises:
            UserError: If width and number of heads are incompatible.
        """
        check_width("model.facemae.decoder_embed_dim", config.decoder_embed_dim, config.decoder_num_heads)
        self.decoder_embed = nn.Linear(width, config.decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_embed_dim))
        self.decoder_blocks = nn.Sequential(
            *(block(config.decoder_embed_dim, config.decoder_num_heads) for _ in range(config.decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(config.decoder_embed_dim, patch**2 * 3)
        self.register_buffer("decoder_positions", sincos_positions(side, config.decoder_embed_dim), persistent=False)

    def decode(self, tokens: Tensor, visible: Tensor, context: Tensor | None = None) -> Tensor:
        """Decode tokens, with mask tokens for masked patches: [B, 1 + V, D] -> [B, L, P].

        context: feature maps of the face's views [B, views, C, h, h], which the patches may attend to.
        """
        small = self.decoder_embed(tokens)  # [B, 1 + V, d]
        length = len(self.decoder_positions) - 1
        full = self.mask_token.to(small.dtype).expand(len(small), length, -1)  # [B, L, d]
        full = full.scatter(1, visible[:, :, None].expand(-1, -1, small.shape[2]), small[:, 1:])
        full = torch.cat([small[:, :1], full], dim=1) + self.decoder_positions
        if context is not None:
            full = full + self.attention(full, context)
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(full)))[:, 1:]


class FaceMAE(MaskedDecoder):
    """Masked autoencoder: face [B, 3, F, F], visible [B, V] -> encoder tokens [B, 1 + V, D] and predicted patches [B,
    L, P]."""

    positions: Tensor

    def __init__(self, face_size: int, config: FaceMAEConfig, context: tuple[int, int] | None = None) -> None:
        """Build the layers. context: channels C and side h of the backbone's feature maps, if the decoder attends to
        them."""
        super().__init__()
        self.patch = config.patch_size
        if face_size % config.patch_size:
            raise UserError(
                f"views.face_size={face_size}: not a multiple of model.facemae.patch_size={config.patch_size}. "
                "Fix: choose a multiple."
            )
        check_width("model.facemae.embed_dim", config.embed_dim, config.num_heads)
        side = face_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.blocks = nn.Sequential(*(block(config.embed_dim, config.num_heads) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.build_decoder(side, config.patch_size, config.embed_dim, config)
        self.register_buffer("positions", sincos_positions(side, config.embed_dim), persistent=False)
        if context is not None:
            self.attention = CrossAttention(config.decoder_embed_dim, config.decoder_num_heads, *context)
        self.apply(xavier)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, patches: Tensor, visible: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map patches [B, L, P] of the normalized face, visible [B, V] -> tokens [B, 1 + V, D], prediction [B, L,
        P]."""
        tokens = self.encode(patches, visible)
        return tokens, self.decode(tokens, visible, context)

    def encode(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Encode only visible patches and the class token to [B, 1 + V, D]."""
        seen = patches.gather(1, visible[:, :, None].expand(-1, -1, patches.shape[2]))  # [B, V, P]
        tokens = self.patch_embed(seen) + self.positions[1:][visible]  # [B, V, D]
        first = (self.cls_token + self.positions[:1]).expand(len(tokens), -1, -1)  # [B, 1, D]
        return self.norm(self.blocks(torch.cat([first, tokens], dim=1)))


class CrossAttention(nn.Module):
    """Cross-attention of queries [B, N, d] to positions of feature maps [B, views, C, h, h]: -> [B, N, d].

    Patches are completed from other views of the same image (cross-view completion: Weinzaepfel et al. 2022, CroCo,
    arXiv 2210.10716), and the reconstruction loss trains the network that made the maps.
    """

    places: Tensor

    def __init__(self, width: int, heads: int, channels: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.map_norm = nn.LayerNorm(channels, eps=1e-6)
        self.embed = nn.Linear(channels, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("places", sincos_positions(side, width)[1:], persistent=False)

    def forward(self, queries: Tensor, maps: Tensor) -> Tensor:
        tokens = self.embed(self.map_norm(maps.flatten(3).transpose(2, 3)))  # [B, views, S, d]
        tokens = (tokens + self.places).flatten(1, 2)  # [B, views S, d]
        query = self._split(self.query(self.query_norm(queries)))
        key, value = (self._split(part) for part in self.key_value(tokens).chunk(2, dim=2))
        found = F.scaled_dot_product_attention(query, key, value)  # [B, heads, N, d / heads]
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Patch-sized convolution, applied to selected patches only: [B, V, P] -> [B, V, D]."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, patches: Tensor) -> Tensor:
        # The convolution's weight [D, channel, row, column] in the order of a patch vector: (row, column, channel).
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # [D, P]
        return F.linear(patches, weight, self.proj.bias)


def patchify(image: Tensor, patch: int) -> Tensor:
    """Convert [B, 3, F, F] -> [B, L, patch patch 3], patches row by row, a vector ordered (row, column, channel)."""
    batch, channels, height, width = image.shape
    blocks = image.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """Invert `patchify`: [B, L, patch patch 3] -> [B, 3, F, F]."""
    side = int(patches.shape[1] ** 0.5)
    blocks = patches.unflatten(1, (side, side)).unflatten(3, (patch, patch, 3))  # [B, row, column, y, x, 3]
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, side * patch, side * patch)


def sincos_positions(side: int, width: int) -> Tensor:
    """Compute the positional embeddings of a side x side grid [1 + side * side, width]; row 0, the class token's, is
    zero.

    The first half encodes the column, the second the row; each as sines then cosines of position / 10000^(i / (D/4)).
    Stored in float32 as in the reference, even if the model runs in float64.
    """
    rate = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))  # [D/4]
    angle = torch.arange(side, dtype=torch.float64)[:, None] * rate  # [side, D/4]
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, D/2]
    column = wave[None, :, :].expand(side, -1, -1)
    row = wave[:, None, :].expand(-1, side, -1)
    grid = torch.cat([column, row], dim=2).flatten(0, 1)  # [side side, D]
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), grid]).to(torch.float32)


def block(width: int, heads: int) -> Block:
    """Build a pre-norm ViT block with MLP ratio 4."""
    return Block(width, heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))  # type: ignore[arg-type]


def check_width(field: str, width: int, heads: int) -> None:
    """Raise a UserError if `width` is not divisible by the attention heads and by the sines and cosines of two axes."""
    if width % heads or width % 4:
        raise UserError(
            f"{field}={width}: must be a multiple of its heads={heads} and of 4. Fix: choose a multiple of both."
        )


def xavier(module: nn.Module) -> None:
    """Initialize a linear layer or patch embedding, for `Module.apply`; other modules do not change."""
    # Xavier as in ViT's and MAE's papers; a patch embedding is initialized as the equivalent linear layer.
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
