"""The MLP head that projector, predictor and both distillation heads share."""

from torch import Tensor, nn


class MLPHead(nn.Module):
    """Linear - BatchNorm - ReLU - Linear: [B, width] -> [B, out] (BYOL, Grill et al. 2020, section 3.3)."""

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
