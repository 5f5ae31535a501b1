"""Methods and batches small enough for tests."""

from dataclasses import replace

import torch

from simfle.batch import Batch
from simfle.config import ContrastConfig, FaceMAEConfig, ModelConfig, ViewsConfig

FACEMAE = FaceMAEConfig(patch=8, width=48, depth=1, heads=3, decoder_width=32, decoder_depth=1, decoder_heads=2)
CONTRAST = ContrastConfig(queue=24, splits=2, prototypes=12)
TINY = ModelConfig(
    backbone="test_resnet", hidden=32, projection=16, bottleneck=8, groups=8, facemae=FACEMAE, contrast=CONTRAST
)
VIEWS = ViewsConfig(size=32, face_size=32)
NAMES = ("simfle", "byol", "simsiam", "simclr", "moco", "swav", "vicreg", "mae")
EMA = ("simfle", "byol", "moco")


def config(method: str, **changes: object) -> ModelConfig:
    """The tiny model of a method; MAE's encoder is a ViT."""
    backbone = "test_vit" if method == "mae" else TINY.backbone
    return replace(TINY, **{"method": method, "backbone": backbone, **changes})  # type: ignore[arg-type]


def batch(size: int = 8, seed: int = 0) -> Batch:
    """Random images of 32 px, ids and draws."""
    generator = torch.Generator().manual_seed(seed)
    images = (torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(3))
    draw = torch.randint(0, 2**32, (size,), generator=generator).double() / 2**32
    return Batch(*(image.contiguous(memory_format=torch.channels_last) for image in images), torch.arange(size), draw)
