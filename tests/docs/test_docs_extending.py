"""Add and use the corpus, backbone, method and benchmark of docs/extending.md."""

import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from docs.pages import ALL, is_ours, ours
from docs.test_docs_executed import NAMES, added, do

import shards
import simfle
from shards.sources import registry
from simfle.batch import Batch
from simfle.commands.shards import build, build_source
from simfle.config.schema import ModelConfig, PretrainConfig, load
from simfle.models import registry as models_registry
from simfle.models.registry import build_method

BLOCKS = [block for block in ALL if block.page == "docs/extending.md"]
FILES = {match[1]: block for block in BLOCKS if (match := re.match(r"# ([\w/]+\.\w+)\n", block.text))}
LINES = [ours(line.words) for block in BLOCKS for line in block.commands if is_ours(line)]


def module(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load a file of the page as a module."""
    name = path.removesuffix(".py").replace("/", ".")
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(FILES[path].text, path, "exec"), made.__dict__)
    return made


def line(word: str) -> list[str]:
    (found,) = [words for words in LINES if any(word in each for each in words)]
    return [*found, *added(found)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards/mine of synthetic faces, and the folder of the corpus."""
    folder = tmp_path_factory.mktemp("extending")
    options = ["--people", "8", "--images-per-person", "7", "--size", "64", "--workers", "1"]
    do(["shards", "build", "procedural", str(folder / "shards/mine"), *options])
    rows, images = [], folder / "path/to/atelier/images"
    images.mkdir(parents=True)
    for number, item in enumerate(shards.open(folder / "shards/mine")[:8]):
        (images / f"{number}.jpg").write_bytes(item.image_bytes)
        rows.append(f"{number}.jpg,{('neutral', 'joy')[number % 2]},{NAMES[1:5][number // 2]}")
    (images.parent / "list.csv").write_text("\n".join([*rows, "9.jpg,joy"]) + "\n")
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def test_the_page_has_its_files() -> None:
    assert set(FILES) == {
        "shards/sources/corpora/atelier.py",
        "simfle/models/methods/pebble.py",
        "simfle/models/methods/barlow.py",
        "clinic.yaml",
    }


def test_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    module("shards/sources/corpora/atelier.py", monkeypatch)
    monkeypatch.setattr(registry, "SOURCES", (*registry.SOURCES, "atelier"))
    monkeypatch.setattr(build_source, "app", typer.Typer(no_args_is_help=True))
    build.commands.cache_clear()
    try:
        do(line("atelier"))
    finally:
        build.commands.cache_clear()
    found = shards.open("shards/atelier")
    assert len(found) == 8
    assert found.manifest.rejected == {"bad_row": 1}
    assert found.manifest.terms.startswith("Atelier: with the actors' written consent")
    assert found.manifest.build["published"]["differences"] == []
    groups = {split: {item.metadata["group"] for item in found if item.split == split} for split in ("train", "test")}
    assert groups["train"]
    assert groups["test"]
    assert not groups["train"] & groups["test"]


def test_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    module("simfle/models/methods/pebble.py", monkeypatch)
    do(line("pebble"))
    do(["export", "runs/pebble"])
    model = simfle.load_backbone("runs/pebble")
    assert model.features == 64
    assert model(shards.open("shards/mine")[0].image).shape == (1, 64)


def test_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module("simfle/models/methods/barlow.py", monkeypatch)
    (entry,) = [block.text for block in BLOCKS if block.text.startswith("METHODS[")]
    monkeypatch.setattr(models_registry, "METHODS", dict(models_registry.METHODS))
    exec(entry, {"METHODS": models_registry.METHODS, "BarlowTwins": made.BarlowTwins})
    limits = {field.name: field for field in dataclasses.fields(ModelConfig)}["method"].metadata["limits"]
    monkeypatch.setitem(vars(limits), "choices", (*limits.choices, "barlow"))
    do(line("barlow"))
    do(["export", "runs/barlow"])
    assert simfle.load_backbone("runs/barlow")(shards.open("shards/mine")[0].image).shape[0] == 1
    # Equations 1 and 2 by loops.
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    cross = [[correlation(first[:, a], second[:, b]) for b in range(5)] for a in range(5)]
    found = made.standardize(first).T @ made.standardize(second) / 6
    torch.testing.assert_close(found, torch.tensor(cross, dtype=torch.float64), atol=1e-4, rtol=0)
    # Two equal views: each dimension correlates with itself, only redundancy remains.
    config = load(PretrainConfig, None, [*added(["pretrain", ""])[:7], "model.method=barlow"])
    model = build_method(config.model, config.views)
    view = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    losses = model(Batch(view, view, view, torch.arange(4), torch.zeros(4)))
    assert losses["invariance"] < 1e-4
    torch.testing.assert_close(losses["total"], losses["invariance"] + 0.005 * losses["redundancy"])


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's correlation of two vectors."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (a.norm() * b.norm()))


def test_a_benchmark(here: Path) -> None:
    words = [f"data.shards=[{here / 'shards/mine'}]", "train.run_dir=runs/mine"]
    do(["pretrain", *words, *added(["pretrain", *words])])
    text = FILES["clinic.yaml"].text.replace("happy", "happiness")  # the synthetic faces' label name
    (here / "clinic.yaml").write_text(text)
    do(line("clinic.yaml"))
    results = list(here.glob("runs/mine/eval/*/clinic/knn/seed-*.json"))
    assert results
