"""Limits of fields: declared once, checked by one function, equal to what the program implements."""

# ruff: noqa: RUF009 - config_field() is a dataclass field
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest

from simfle.config.parsing import fields
from simfle.config.schema import (
    ContrastiveConfig,
    DataConfig,
    FaceMAEConfig,
    ModelConfig,
    PretrainConfig,
    TrainConfig,
    config_field,
)
from simfle.config.unused_fields import UNUSED_BY_METHOD, unused_fields, unused_model_fields
from simfle.config.validate import validate
from simfle.data.loader import BACKENDS
from simfle.errors import UserError
from simfle.eval.config import EvalConfig
from simfle.eval.data.benchmarks import Benchmark
from simfle.models.registry import METHODS
from simfle.optim import STATES
from simfle.slurm.config import ClusterConfig

SCHEMAS = (PretrainConfig, EvalConfig, ClusterConfig, Benchmark)


@dataclass(frozen=True)
class Inner:
    rate: float = config_field(0.5, "", above=0, below=1)
    mode: str = config_field("auto", "", choices=("auto", "fast"))


@dataclass(frozen=True)
class Outer:
    steps: int = config_field(3, "", min=1, max=9)
    size: int = config_field(-1, "", choices=(-1, 2), aliases={"auto": -1})
    window: list[int] = config_field(lambda: [1, 2], "", length=2, ascending=True, min=0)
    seeds: list[int] = config_field(lambda: [0], "", nonempty=True, distinct=True)
    name: str = config_field("a", "", nonempty=True)
    free: float = config_field(0.0, "")
    inner: Inner = config_field(Inner, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "x.steps=0: must be 1 to 9. Fix: set x.steps=1."),
        ({"steps": 12}, "x.steps=12: must be 1 to 9. Fix: set x.steps=9."),
        ({"size": 3}, "x.size=3: must be auto or 2. Fix: set x.size=auto."),
        ({"window": [1]}, "x.window=[1]: must be two ascending numbers, each at least 0. Fix: set x.window=[1,2]."),
        ({"window": [2, 1]}, "x.window=[2, 1]: must be two ascending numbers, each at least 0"),
        ({"window": [-1, 1]}, "x.window=[-1, 1]: must be two ascending numbers, each at least 0"),
        ({"seeds": []}, "x.seeds=[]: must be one or more distinct numbers. Fix: set x.seeds=[0]."),
        ({"seeds": [1, 1]}, "x.seeds=[1, 1]: must be one or more distinct numbers"),
        ({"name": ""}, "x.name='': must be a non-empty text. Fix: set x.name=a."),
        ({"free": math.nan}, "x.free=nan: must be a finite number. Fix: set x.free=0.0."),
        ({"free": -math.inf}, "x.free=-inf: must be a finite number"),
        ({"inner": Inner(rate=0)}, "x.inner.rate=0: must be above 0, below 1. Fix: set x.inner.rate=0.5."),
        ({"inner": Inner(rate=1.0)}, "x.inner.rate=1.0: must be above 0, below 1"),
        ({"inner": Inner(mode="fsat")}, "x.inner.mode='fsat': must be auto or fast. Fix: set x.inner.mode=fast."),
    ],
)
def test_a_message_names_field_value_and_limits(change: dict[str, Any], message: str) -> None:
    validate(Outer(), "x")
    with pytest.raises(UserError) as error:
        validate(Outer(**change), "x")
    assert str(error.value).startswith(message)


def test_unused_fields_may_be_out_of_range_but_not_infinite() -> None:
    validate(Outer(steps=0, inner=Inner(rate=2)), unused=("steps", "inner"))
    with pytest.raises(UserError, match=r"inner\.rate=inf"):
        validate(Outer(inner=Inner(rate=math.inf)), unused=("inner",))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_defaults_are_within_their_limits(schema: type) -> None:
    validate(schema())


def test_choices_are_what_is_implemented() -> None:
    choices = {name: field.metadata["limits"].choices for name, field in fields(PretrainConfig)}
    assert choices["model.method"] == tuple(METHODS)
    assert choices["optim.name"] == tuple(STATES)
    assert choices["data.backend"] == BACKENDS


def test_unused_fields_exist() -> None:
    assert UNUSED_BY_METHOD.keys() <= METHODS.keys()
    groups = {"model.contrastive"}
    assert {name for names in UNUSED_BY_METHOD.values() for name in names} - groups <= dict(
        fields(PretrainConfig)
    ).keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_ignores_the_range_of_fields_that_it_does_not_use(method: str) -> None:
    invalid = {
        "contrastive.queue_size": ({"contrastive": ContrastiveConfig(queue_size=0)}, ("simclr", "moco", "swav", "fra")),
        "ema_momentum": ({"ema_momentum": 2.0}, ("simfle", "byol", "moco", "mocov3", "dino", "care", "fra")),
        "mask_groups": ({"mask_groups": 0}, ("simfle",)),
    }
    for name, (change, users) in invalid.items():
        model = ModelConfig(method=method, **change)
        if method not in users:
            validate(model, "model", unused_model_fields(model))
            continue
        with pytest.raises(UserError, match=rf"model\.{name}"):
            validate(model, "model", unused_model_fields(model))


def test_simfle_without_facemae_uses_the_fields_of_byol() -> None:
    byol = ModelConfig(facemae=FaceMAEConfig(enabled=False), mask_groups=0)
    validate(byol, "model", unused_model_fields(byol))


def test_data_and_profile_that_are_not_used() -> None:
    local = PretrainConfig(
        data=DataConfig(shards=["faces"], cache_gb=0), train=TrainConfig(profile_steps=[], profile_ranks=[])
    )
    validate(local, unused=unused_fields(local))
    remote = dataclasses.replace(local, data=DataConfig(shards=["https://host/faces"], cache_gb=0))
    with pytest.raises(UserError, match=r"data\.cache_gb=0: must be above 0"):
        validate(remote, unused=unused_fields(remote))
