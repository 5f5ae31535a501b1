"""Fine-tuning: learning rates per layer, the schedule, balanced epochs, and a change of the network."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.eval_fixtures import MakeBackbone, MakeShards
from safetensors.torch import load_file
from torch import nn

from simfle.errors import UserError
from simfle.eval.analysis.results import read_results
from simfle.eval.backbones.load import load_backbone
from simfle.eval.config import EvalConfig, FinetuneConfig
from simfle.eval.data.splits import Split
from simfle.eval.evaluator import evaluate
from simfle.eval.protocols.finetune import Classifier, draw_epoch, lr_factor, parameter_groups

pytestmark = pytest.mark.slow


def test_each_layer_learns_slower_than_the_one_above(make_backbone: MakeBackbone) -> None:
    """resnet10t: a stem and four blocks below the classifier."""
    backbone = load_backbone(make_backbone(model="resnet10t"))
    model = Classifier(backbone, 3, 0)
    config = FinetuneConfig(lr=1.0, layer_decay=0.5, weight_decay=0.1)
    groups = parameter_groups(model, config)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    expected = {"conv1": 5, "bn1": 5, "layer1": 4, "layer2": 3, "layer3": 2, "layer4": 1}
    for name, parameter in model.backbone.network.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.5 ** expected[name.split(".")[0]]), name
        assert decays[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0), name
        assert parameter.requires_grad
    assert rates[id(model.head.weight)] == rates[id(model.head.bias)] == 1.0
    assert decays[id(model.head.weight)] == 0.1
    assert not any(
        parameter.requires_grad for parameter in backbone.module.parameters()
    )  # the given backbone stays frozen


def test_schedule() -> None:
    config = FinetuneConfig(epochs=10, warmup_epochs=2)
    found = [lr_factor(step, 5, config) for step in range(50)]
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 40) for step in range(40)])
    assert found[-1] < 0.01


def split(counts: list[int]) -> Split:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = tuple(map(str, range(len(labels))))
    return Split("train", None, np.arange(len(labels)), labels, names, names, tuple("abc"))  # type: ignore[arg-type]


def test_balanced_epochs_draw_classes_equally_often() -> None:
    train = split([2700, 270, 30])
    order = draw_epoch(train, True, 0, 0)
    assert len(order) == 3000
    assert np.bincount(train.labels[order]) == pytest.approx([1000] * 3, rel=0.1)
    rare = np.bincount(order, minlength=3000)[-30:]
    assert rare.min() > 10  # each of them, not only a few
    assert np.array_equal(order, draw_epoch(train, True, 0, 0))
    assert not np.array_equal(order, draw_epoch(train, True, 0, 1))
    assert not np.array_equal(order, draw_epoch(train, True, 1, 0))
    assert sorted(draw_epoch(train, False, 0, 0)) == list(range(3000))


def test_it_learns_and_twice_the_same(make_shards: MakeShards, make_backbone: MakeBackbone, tmp_path: Path) -> None:
    part = FinetuneConfig(epochs=8, warmup_epochs=1, batch=16, lr=1e-2, layer_decay=0.9, jitter=0.2, scale=[0.8, 1.0])
    file = make_backbone()
    before = load_file(file)
    config = EvalConfig(
        shards=[str(make_shards({"train": [60, 50, 40], "test": [12, 12, 12]}))],
        backbones=[str(file)],
        protocols=["finetune", "scratch@0.3"],
        finetune=part,
        scratch=replace(part, balance="weights"),
        val_fraction=0.2,
        bootstrap_samples=10,
        threads=2,
        out=str(tmp_path / "eval"),
    )
    evaluate(config, [])
    scratch, tuned = sorted(read_results([config.out]), key=lambda found: found.backbone["kind"] == "online")
    assert (tuned.protocol, tuned.backbone["kind"]) == ("finetune", "online")
    assert (scratch.protocol, scratch.backbone["kind"]) == ("scratch@0.3", "random")
    assert tuned.score > 0.5  # chance is a third
    assert 1 <= tuned.chosen[0]["epoch"] <= 8
    assert all(torch.equal(value, before[name]) for name, value in load_file(file).items())
    again = replace(config, out=str(tmp_path / "again"), protocols=["finetune"])
    evaluate(again, [])
    assert read_results([again.out])[0].samples == tuned.samples
    # A random backbone given by name is fine-tuned as others: it does not use scratch's settings.
    named = replace(
        again, backbones=["random:test_resnet+size=32"], finetune=replace(part, epochs=2), bootstrap_samples=1
    )
    found = []
    for scratch in (part, replace(part, lr=1e-9)):
        out = tmp_path / f"named-{scratch.lr}"
        evaluate(replace(named, scratch=scratch, out=str(out)), [])
        found += read_results([out])
    assert [each.backbone["source"] for each in found] == ["random:test_resnet+size=32"] * 2
    assert found[0].samples == found[1].samples


def test_the_whole_network_learns(make_backbone: MakeBackbone) -> None:
    backbone = load_backbone(make_backbone())
    model = Classifier(backbone, 3, 0).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, FinetuneConfig()))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # the head starts near zero
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(8) % 3).backward()
        optimizer.step()
    after = dict(model.backbone.named_parameters())
    for name, parameter in backbone.module.named_parameters():
        assert not torch.equal(parameter, after[name]), name


def test_weights_that_are_not_finite_end_it(
    make_shards: MakeShards, make_backbone: MakeBackbone, tmp_path: Path
) -> None:
    config = EvalConfig(
        shards=[str(make_shards({"train": [8, 8, 8], "test": [4, 4, 4]}))],
        backbones=[str(make_backbone())],
        protocols=["finetune"],
        seeds=[0],
        random_baseline=False,
        val_fraction=0.25,
        finetune=FinetuneConfig(epochs=1, batch=8, lr=1e30),
        out=str(tmp_path / "eval"),
    )
    with pytest.raises(UserError, match=r"finetune.lr=1e\+30: the weights are not finite after epoch 1. Fix: lower"):
        evaluate(config, [])
    assert not list(Path(config.out).rglob("*.json"))
