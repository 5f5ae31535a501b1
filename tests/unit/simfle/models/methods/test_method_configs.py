"""The shipped configuration of each method: it loads, and builds the networks of its paper."""

from pathlib import Path

import pytest
import torch

from simfle.config.schema import PretrainConfig, load
from simfle.models.registry import METHODS, build_method

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[5] / "configs/pretrain/methods"
# Parameters of the backbone that are trained, of all the rest that is, and numbers in the queue.
# Heads: 2048 x 4096 + 4096 x 256 and so on, with biases and BatchNorms.
RESNET50 = 23_508_032
BLOCK = 512 * (3 * 512 + 512 + 2 * 2048) + 3 * 512 + 512 + 2048 + 512 + 4 * 512  # a transformer block, 512 wide
BYOL_HEADS = 2 * (4096 + 2 * 4096 + 256) + 4096 * (2048 + 256 + 256 + 256)  # projector and predictor
PREDICTOR = 4096 * (256 + 256) + 3 * 4096 + 256
ATTENTION = 2 * 256 + 2 * 2048 + 256 * (2048 + 1) + 4 * 256 * (256 + 1)  # two norms, the maps' embedding, four products
VIT_SMALL = 384 * (197 + 1) + 12 * (12 * 384**2 + 13 * 384) + 2 * 384  # tokens, blocks and the last norm
SIZES = {
    "byol": (RESNET50, BYOL_HEADS, 0),
    "simsiam": (
        RESNET50,
        3 * (2048 * 2048 + 3 * 2048) + (2048 * 512 + 3 * 512) + (512 * 2048 + 2048),
        0,
    ),
    "simclr": (RESNET50, 2048 * 2048 + 2048 + 2048 * 128 + 128, 0),
    "moco": (RESNET50, 2048 * 2048 + 2048 + 2048 * 128 + 128, 65536 * 128),
    "mocov3": (
        VIT_SMALL,  # without the patch projection
        4096 * (384 + 4096 + 256) + 2 * 2 * 4096 + 4096 * (256 + 256) + 2 * 4096,
        0,
    ),
    "swav": (RESNET50, 2048 * 2048 + 3 * 2048 + 2048 * 128 + 128 + 3000 * 128, 0),
    "vicreg": (RESNET50, 8192 * (2048 + 8192 + 8192) + 7 * 8192, 0),
    "mae": (85_798_656 - 197 * 768, 768 * 512 + 512 + 512 + 8 * BLOCK + 1024 + 512 * 768 + 768, 0),
    "dino": (RESNET50, 2 * 2048 * (2048 + 1) + 256 * (2048 + 1) + 65536 * 256, 0),
    "care": (
        RESNET50,
        BYOL_HEADS + PREDICTOR + 512 * (2048 + 1) + 4 * BLOCK + 1024 + 4096 * (512 + 256) + 3 * 4096 + 256,
        0,
    ),
    "fra": (
        RESNET50,
        2 * BYOL_HEADS + 8 * 256 + ATTENTION + 2 * 256 + 1024 * (256 + 1) + 256 * (1024 + 1) + 256 * (2048 + 1),
        0,
    ),
}


def test_every_method_has_its_configuration() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(METHODS) - {"simfle"} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_shipped_configuration_builds_the_networks_of_the_paper(name: str) -> None:
    config = load(PretrainConfig, FOLDER / f"{name}.yaml")
    assert config.model.method == name
    with torch.device("meta"):  # shapes without numbers
        model = build_method(config.model, config.views)
    trained = {key: parameter.numel() for key, parameter in model.named_parameters() if parameter.requires_grad}
    backbone = sum(count for key, count in trained.items() if key.startswith("online.backbone."))
    queue = sum(buffer.numel() for key, buffer in model.named_buffers() if key == "queue")
    assert (backbone, sum(trained.values()) - backbone, queue) == SIZES[name]
    budget = (config.train.epochs, config.train.global_batch, config.train.seed)
    assert budget == (100, 256, 0)  # that of SimFLE's configuration
