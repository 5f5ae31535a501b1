"""A checkpoint of another model is refused, with the names that differ."""

import pytest
import torch
from torch import nn

from shards.errors import UserError
from simfle.train.state import load_model, saved_buffers


def network(width: int = 4, *, deep: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(3, width), nn.BatchNorm1d(width)]
    return nn.Sequential(*layers, *([nn.Linear(width, width)] if deep else []))


def test_parameters_and_buffers_are_filled() -> None:
    torch.manual_seed(0)
    source, target = network(), network()
    source[1].running_mean.fill_(7)
    load_model(target, dict(source.state_dict()), "step-1")
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (network(deep=True), "step-1 is a checkpoint of another model: it has in excess 2.bias, 2.weight"),
        (nn.Sequential(nn.Linear(3, 4)), r"it lacks 1.bias, 1.num_batches_tracked, 1.running_mean and 2 more"),
        (network(5), "it has in another shape 0.weight, 0.bias, 1.weight and 3 more"),
    ],
)
def test_another_model_is_refused(saved: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(network(), dict(saved.state_dict()), "step-1")


def test_constants_are_no_state() -> None:
    model = network()
    model.register_buffer("positions", torch.zeros(2), persistent=False)
    assert set(saved_buffers(model)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
