"""Pooling and MLP heads on a backbone."""

# B batch, C channels, H x H image
from torch import Tensor, nn

from simfle.models.backbone import feature_map


class MLPHead(nn.Module):
    """Projector or predictor, Linear - BatchNorm - ReLU - Linear: [B, width] -> [B, out] (BYOL, section 3.3)."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)


def mlp_head_no_bn(width: int, hidden: int, out: int) -> nn.Module:
    """Build Linear - ReLU - Linear, without BatchNorm (SimCLR, Chen et al. 2020, section 2.1; MoCo v2)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


def three_layer_head(width: int, hidden: int, out: int) -> nn.Module:
    """Build three linear layers, each with BatchNorm, and ReLU on all except the output (SimSiam, section 3)."""
    layers: list[nn.Module] = []
    for wide, narrow in ((width, hidden), (hidden, hidden)):
        layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden, out), nn.BatchNorm1d(out))


def expander(width: int, hidden: int, out: int) -> nn.Module:
    """Build three linear layers, with BatchNorm and ReLU on the first two (VICReg, section 4.2)."""
    layers: list[nn.Module] = []
    for wide, narrow in ((width, hidden), (hidden, hidden)):
        layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden, out))


def normed_head(width: int, hidden: int, out: int, layers: int) -> nn.Module:
    """Build `layers` linear layers without bias, BatchNorm on all, ReLU on all but the output (MoCo v3, section 3).

    The BatchNorm of the output has no scale and shift.
    """
    widths = [width, *[hidden] * (layers - 1)]
    parts: list[nn.Module] = []
    for wide in widths[:-1]:
        parts += [nn.Linear(wide, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Linear(hidden, out, bias=False), nn.BatchNorm1d(out, affine=False))


def gelu_head(width: int, hidden: int, out: int) -> nn.Module:
    """Build three linear layers with GELU in between, without BatchNorm: [B, width] -> [B, out] (DINO, section 3.1)."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out)
    )


class BackboneWithHead(nn.Module):
    """Backbone, global average pool, projector: images [B, 3, H, H] -> y [B, C] and projection [B, out]."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = feature_map(self.backbone, images).mean(dim=(2, 3))  # [B, C]
        return pooled, self.projector(pooled)
