"""The configuration page equals the dataclasses, and every range on it equals the checks."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed.runs import SETTINGS

from simfle.config.parsing import fields
from simfle.config.schema import PretrainConfig, load
from simfle.config.validate import Limits
from simfle.data.loader import choose_backend
from simfle.data.sampler import Sampler
from simfle.data.storage.stores import make_cache
from simfle.errors import UserError
from simfle.eval.config import EvalConfig
from simfle.eval.config import check as check_evaluation
from simfle.eval.data.benchmarks import Benchmark, custom_benchmark
from simfle.eval.data.benchmarks import check as check_benchmark
from simfle.models.registry import build_method
from simfle.runtime.distributed import compute_batch_layout, init_distributed
from simfle.slurm.config import ClusterConfig
from simfle.slurm.config import check as check_cluster
from simfle.train.preflight import check as check_training

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import configuration as reference  # noqa: E402 - docs/ is no package

sys.path.pop(0)


def pretraining(config: PretrainConfig, field: str) -> None:
    """Run the checks before a run's first step that concern the field."""
    check_training(config)
    choose_backend(config.data.backend, torch.device("cpu"))
    make_cache(config.data)
    compute_batch_layout(config.train, 2)
    Sampler([64], [0], config.train.seed, 4, config.data.shuffle_window, config.train.global_batch)
    if field == "train.device":
        with init_distributed(config.train):
            pass
    if field.startswith(("model.", "views.face_size")):
        build_method(config.model, config.views)


def evaluation(config: EvalConfig, field: str) -> None:
    check_evaluation(config)
    custom_benchmark(config)


CHECKS: dict[type, tuple[list[str], Callable[[Any, str], None]]] = {
    PretrainConfig: ([*SETTINGS, "data.shards=[x]", "data.cache_dir=CACHE"], pretraining),
    EvalConfig: (["backbones=[x]", "shards=[x]"], evaluation),
    Benchmark: (["name=mine", "test=''", "shards=[x]"], lambda config, field: check_benchmark(config, "mine.yaml")),
    ClusterConfig: ([], lambda config, field: check_cluster(config)),
}
# Range texts -> values in the range, values outside. By field, or by the page's text.
EDGES: dict[str, tuple[list[str], list[str]]] = {
    "at least 0": (["0", "1"], ["-1"]),
    "at least 1": (["1"], ["0"]),
    "at least 2": (["2"], ["1"]),
    "at least 100": (["100"], ["99"]),
    "at least 0.025": (["0.025"], ["0.0249"]),
    "above 0": (["0.001"], ["0", "-1"]),
    "0 to 1": (["0", "1"], ["-0.01", "1.01"]),
    "0 to 0.5": (["0", "0.5"], ["-0.01", "0.51"]),
    "above 0, at most 0.5": (["0.5", "0.001"], ["0", "0.51"]),
    "above 0, at most 1": (["1", "0.001"], ["0", "1.01"]),
    "at least 0, below 1": (["0", "0.99"], ["-0.01", "1"]),
    "0 to 4294967295": (["0", "4294967295"], ["-1", "4294967296"]),
    "two ascending numbers, each above 0, at most 1": (
        ["[0.5,1]", "[0.5,0.5]"],
        ["[0,1]", "[1,0.5]", "[0.5,1.1]", "[1]", "[0.1,0.2,0.3]"],
    ),
    "two ascending numbers, each above 0": (["[0.5,3]"], ["[0,1]", "[1,0.5]", "[]", "[1,.inf]"]),
    "two numbers, each at least 0, below 1": (["[0,0.99]"], ["[0.9]", "[0.9,1]", "[-0.1,0.9]"]),
    "three numbers": (["[0.5,0,-1]"], ["[0.5,0.5]", "[0,0,.nan]"]),
    "three numbers, each above 0": (["[0.2,1,0.5]"], ["[0.2]", "[0.2,0,0.2]"]),
    "one or more numbers, each above 0": (["[0.1]"], ["[]", "[0]", "[1,-1]"]),
    "one or more numbers, each at least 0": (["[0]"], ["[]", "[-1]"]),
    "one or more numbers, each at least 1": (["[1]"], ["[]", "[0]"]),
    "one or more distinct numbers, each at least 0": (["[0,1]"], ["[]", "[1,1]", "[-1]"]),
    "distinct texts, each wandb or mlflow": (["[]"], ["[tensorboard]", "[wandb,wandb]"]),  # packages may be missing
    "a non-empty text": (["x"], ["''"]),
    # Rules that involve more than the field.
    "at least 0; at most `nodes`": (["0", "1"], ["-1", "2"]),
    "at least 0; not 1": (["0", "2"], ["1", "-1"]),
    "at least 10; less than `time`": (["10", "86399"], ["9", "86400"]),
    "at least 1; at most half of `train.hang_timeout`": (["1", "300"], ["0", "301"]),
    "two ascending numbers, each at least 1; at most 20 steps": (
        ["[1,20]", "[3,3]"],
        ["[0,3]", "[1,21]", "[5,3]", "[3]"],
    ),
    "0, 8, 16 or 32, as the network allows": (["0", "8", "16", "32"], ["5", "-8"]),
    "at least 1; a multiple of `model.facemae.patch_size`": (["64"], ["60", "0"]),
    "a name that timm knows": (["resnet10t"], ["resnet10x"]),
    "at least 1; divides the backbone's channels": (["8"], ["7", "0"]),
    "at least 1; a multiple of its heads and of 4": (["24"], ["25", "20", "0"]),
    "model.fra.embed_dim": (["24"], ["25", "22", "0"]),  # with one head
    "model.facemae.decoder_embed_dim": (["24"], ["25", "22", "0"]),
    "leaves at least one patch visible and one masked": (["0.5"], ["0", "0.999", "1"]),
    "at least 1; divisible by the number of processes": (["16"], ["15", "0"]),
    "auto, 0, or at least 2 and a divisor of global batch / processes": (["auto", "0", "4"], ["1", "3", "16", "-2"]),
    "30, 12:00:00, 2-00:00:00": (["30", "12:00:00", "2-00:00:00"], ["soon", "1h"]),
    "name or name=value, each": (["[exclusive,exclude=n13]"], ["['--exclusive']"]),
    "NAME=VALUE, each": (["[A=1]"], ["[A]"]),
    "train.device": (["auto", "cpu"], ["gpu"]),  # cuda is refused without a GPU
    "views.size": (["1"], ["0"]),
    "model.facemae.patch_size": (["8", "16"], ["0", "-8"]),  # must also divide views.face_size
    "model.method": (
        ["simfle", "byol", "simsiam", "simclr", "moco", "swav", "vicreg", "dino", "care", "fra"],
        ["dinov2"],
    ),  # mae needs a ViT
}
# Settings with which a run uses the field.
WITH = {
    "model.contrastive.": ["model.method=swav", "model.contrastive.queue_size=16", "model.contrastive.prototypes=8"],
    "model.dino.": ["model.method=dino", "model.dino.prototypes=8"],
    "model.care.": ["model.method=care", "model.care.depth=1", "model.care.num_heads=3", "model.care.embed_dim=24"],
    "model.fra.": ["model.method=fra", "model.fra.num_heads=1"],
    "folds": ["test=''"],
    "optim.name": ["train.zero_stage=0"],
    "monitor.": ["monitor.shards=[x]", "monitor.probe_every=1"],
    "data.cache_gb": ["data.shards=['https://host/faces']"],
    "train.profile_": ["train.profile=true"],
}


def edges() -> Iterator[Any]:
    for _, schema, _ in reference.SECTIONS:
        for field in reference.fields(schema):
            if field.range:
                choices = [word for part in field.range.split(", ") for word in part.split(" or ")]
                known = EDGES.get(field.name) or EDGES.get(field.range) or (choices, ["no-such"])
                yield pytest.param(schema, field.name, *known, id=f"{schema.__name__}-{field.name}")


def test_the_page_is_what_the_dataclasses_say() -> None:
    assert reference.PAGE.read_text() == reference.page(), "stale: run `python docs/configuration.py`"
    for _, schema, _ in reference.SECTIONS:
        for field in reference.fields(schema):
            assert f"| `{field.name}`" in reference.PAGE.read_text()


def test_each_limit_is_on_the_page() -> None:
    """Every range is a text of EDGES or a list of choices: no limit is checked but not stated."""
    for _, schema, _ in reference.SECTIONS:
        for name, field in fields(schema):
            limits = field.metadata["limits"]
            if limits == Limits():
                continue
            text = reference.accepted(field)
            assert name in EDGES or text in EDGES or limits == Limits(choices=limits.choices), text
            assert text.endswith(limits.rule)
            if limits.choices:
                each = text.rpartition("each ")[2]  # of a list
                assert len(limits.choices) == len(each.replace(" or ", ", ").split(", "))


def test_defaults_are_as_one_would_write_them() -> None:
    for _, schema, _ in reference.SECTIONS:
        words = [f"{field.name}={field.default}" for field in reference.fields(schema) if "{" not in field.default]
        default, again = load(schema, None), load(schema, None, words)
        for field, other in zip(
            reference.fields(schema, "", default), reference.fields(schema, "", again), strict=True
        ):
            assert field.default == other.default
            assert np.all(np.array(field.default) == np.array(other.default))


@pytest.mark.parametrize(("schema", "field", "good", "bad"), list(edges()))
def test_ranges_are_what_the_checks_allow(
    schema: type, field: str, good: list[str], bad: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    words, check = CHECKS[schema]
    extra = next((more for start, more in WITH.items() if field.startswith(start)), [])
    words = [word.replace("CACHE", str(tmp_path)) for word in [*words, *extra]]
    for value in good:
        check(load(schema, None, [*words, f"{field}={value}"]), field)
    for value in bad:
        with pytest.raises(UserError, match=field.rsplit(".", maxsplit=1)[-1].replace("_", "[_-]")):
            check(load(schema, None, [*words, f"{field}={value}"]), field)
