"""Synchronized statistics on a CPU: every kind of BatchNorm of each family, and networks without any."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from simfle.models.backbone import build_backbone, feature_map
from simfle.models.layers.sync_batchnorm import CpuSyncBatchNorm, CpuSyncBatchNormAct, convert_sync_batchnorm

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process, over which statistics are reduced."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv4_conv_small_050", "regnetx_002"])
def test_one_process_gets_the_statistics_and_activations_of_its_own_batch(name: str, alone: None) -> None:
    torch.manual_seed(0)
    plain = build_backbone(name).double().train()
    keys = plain.state_dict().keys()
    synced = convert_sync_batchnorm(copy.deepcopy(plain), CPU)
    kinds = {type(module) for module in synced.modules()}
    assert CpuSyncBatchNormAct in kinds
    assert not {torch.nn.BatchNorm2d} & kinds
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    ours, theirs = (feature_map(network, images) for network in (synced, plain))
    torch.testing.assert_close(ours, theirs)
    for network, maps in ((synced, ours), (plain, theirs)):
        (maps * torch.linspace(-1, 1, maps[0].numel()).view(maps[0].shape)).sum().backward()
        assert network.state_dict().keys() == keys
    for (key, parameter), other in zip(synced.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7, msg=key)
    for (key, buffer), other in zip(synced.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=key)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_networks_without_batchnorm_stay_as_they_are(name: str) -> None:
    network = build_backbone(name, 0, 32)
    kinds = [type(module) for module in network.modules()]
    assert [type(module) for module in convert_sync_batchnorm(network, CPU).modules()] == kinds
    assert CpuSyncBatchNorm not in kinds
