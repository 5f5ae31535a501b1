"""Methods and batches small enough for tests."""

from dataclasses import replace

import torch

from simfle.batch import Batch
from simfle.config.schema import (
    CAREConfig,
    ContrastiveConfig,
    DINOConfig,
    FaceMAEConfig,
    FRAConfig,
    ModelConfig,
    ViewsConfig,
)

FACEMAE = FaceMAEConfig(
    patch_size=8, embed_dim=48, depth=1, num_heads=3, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2
)
CONTRAST = ContrastiveConfig(queue_size=24, shuffle_bn_splits=2, prototypes=12)
TINY = ModelConfig(
    backbone="test_resnet",
    head_hidden_dim=32,
    head_out_dim=16,
    predictor_hidden_dim=8,
    mask_groups=8,
    facemae=FACEMAE,
    contrastive=CONTRAST,
    dino=DINOConfig(prototypes=12),
    care=CAREConfig(embed_dim=32, depth=1, num_heads=2),
    fra=FRAConfig(regions=3, embed_dim=16, num_heads=2),
)
VIEWS = ViewsConfig(size=32, face_size=32)
NAMES = ("simfle", "byol", "simsiam", "simclr", "moco", "mocov3", "swav", "vicreg", "mae", "dino", "care", "fra")
EMA = ("simfle", "byol", "moco", "mocov3", "dino", "care", "fra")
MAPS = {"care": 8, "fra": 8}  # methods that read a feature map: a stride that leaves several positions of 32 px


def config(method: str, **changes: object) -> ModelConfig:
    """The tiny model of a method; MAE's encoder is a ViT."""
    backbone = "test_vit" if method == "mae" else TINY.backbone
    own = {"method": method, "backbone": backbone, "output_stride": MAPS.get(method, 0)}
    return replace(TINY, **{**own, **changes})  # type: ignore[arg-type]


def batch(size: int = 8, seed: int = 0) -> Batch:
    """Random images of 32 px, ids and draws."""
    generator = torch.Generator().manual_seed(seed)
    images = (torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(3))
    draw = torch.randint(0, 2**32, (size,), generator=generator).double() / 2**32
    return Batch(*(image.contiguous(memory_format=torch.channels_last) for image in images), torch.arange(size), draw)
