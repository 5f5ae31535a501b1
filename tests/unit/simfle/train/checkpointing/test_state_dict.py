"""A checkpoint of another model is refused, with the names that differ."""

import pytest
import torch
from torch import nn

from shards.errors import UserError
from simfle.train.checkpointing.state_dict import is_finite, load_model, persistent_buffers


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
        (network(deep=True), "step-1 is a checkpoint of another model: it also has 2.bias, 2.weight"),
        (nn.Sequential(nn.Linear(3, 4)), r"it lacks 1.bias, 1.num_batches_tracked, 1.running_mean and 2 more"),
        (network(5), "it has in another shape 0.weight, 0.bias, 1.weight and 3 more"),
    ],
)
def test_another_model_is_refused(saved: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(network(), dict(saved.state_dict()), "step-1")


@pytest.mark.parametrize("name", ["0.weight", "1.bias", "1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found(name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor, operation: None)  # alone
    model = network(64)
    model.register_parameter("empty", nn.Parameter(torch.zeros(0)))
    with torch.no_grad():
        model[0].weight.fill_(1e30)  # large, but a number
    assert is_finite(model, torch.device("cpu"))
    model.state_dict()[name].view(-1)[37] = value
    assert not is_finite(model, torch.device("cpu"))


def test_constants_are_no_state() -> None:
    model = network()
    model.register_buffer("positions", torch.zeros(2), persistent=False)
    assert set(persistent_buffers(model)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
