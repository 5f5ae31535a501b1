"""Activation checkpointing and torch.compile: the same results with less kept, and without what does not compile."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from simfle.batch import Batch
from simfle.config.schema import FaceMAEConfig, ModelConfig, ViewsConfig
from simfle.errors import UserError
from simfle.models.registry import build_method, compiled

pytestmark = pytest.mark.slow

VIEWS = ViewsConfig(size=64, face_size=64)
SMALL = FaceMAEConfig(
    patch_size=16, embed_dim=48, depth=3, num_heads=4, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4
)
MODEL = ModelConfig(backbone="resnet18", head_hidden_dim=32, head_out_dim=16, mask_groups=8, facemae=SMALL)
MAE = replace(MODEL, method="mae", backbone="vit_tiny_patch16_224")
DINOV3 = replace(MODEL, method="byol", backbone="vit_tiny_patch16_dinov3_qkvb")  # its blocks are an nn.ModuleList


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = (torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator) for _ in range(3))
    return Batch(*images, torch.arange(4), torch.rand(4, dtype=torch.float64, generator=generator))


def steps(model: ModelConfig, *, count: int = 2) -> tuple[dict[str, torch.Tensor], int]:
    """Everything that is learnt in a few steps, and the most numbers kept between a forward and its backward."""
    torch.manual_seed(0)
    method = build_method(model, VIEWS).train()
    optimizer = torch.optim.SGD([each for each in method.parameters() if each.requires_grad], lr=0.01, momentum=0.9)
    most = 0
    for _ in range(count):
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()  # noqa: B023
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            total = method(batch())["total"]
        most = max(most, sum(kept.values()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        method.on_step_end()
    return {**method.state_dict(), "total": total.detach()}, most


@pytest.mark.parametrize("model", [MODEL, MAE, DINOV3], ids=["simfle", "mae", "dinov3"])
def test_recomputing_changes_nothing_but_what_is_kept(model: ModelConfig) -> None:
    plain, kept = steps(model)
    again, fewer = steps(replace(model, activation_checkpointing=True))
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name  # BatchNorm's statistics, too
    assert fewer < 0.7 * kept


def test_what_does_not_compile_runs_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler here")

    torch.manual_seed(0)
    method = build_method(MODEL, VIEWS).train()
    wanted = method(batch())["total"]
    torch.manual_seed(0)
    method = build_method(MODEL, VIEWS).train()
    names = list(method.state_dict())
    for network in method.networks():
        compiled(network, backend=broken)
    assert torch.equal(method(batch())["total"], wanted)
    assert list(method.state_dict()) == names
    assert "no compiler here" in caplog.text
    with pytest.raises(
        UserError, match=r"model\.compile=true with model\.activation_checkpointing=true: not supported"
    ):
        build_method(replace(MODEL, compile="true", activation_checkpointing=True), VIEWS)
