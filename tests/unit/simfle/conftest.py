"""A tiny labeled corpus on disk, and backbone files, for the evaluation tests."""

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.eval_fixtures import CLASSES, MODEL, MakeBackbone, MakeShards, write_shard
from safetensors.torch import save_file

from shards.format.manifest import FORMAT, Manifest, write_manifest
from simfle.eval.backbones.load import BackboneMetadata
from simfle.models.backbone import build_backbone


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """make_shards(counts): {split: images per class}, two images per person, several shards per split."""

    def make(
        counts: dict[str, list[int]], name: str = "shards", labeled: bool = True, size: int = 48, per_shard: int = 20
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        infos = []
        for split, each in counts.items():
            samples = [(label, number) for label, count in enumerate(each) for number in range(count)]
            np.random.default_rng(0).shuffle(samples)
            for start in range(0, len(samples), per_shard):
                infos.append(write_shard(folder, split, start, samples[start : start + per_shard], labeled, size))
        total = sum(info.samples for info in infos)
        labels = CLASSES if labeled else ()
        write_manifest(folder, Manifest(FORMAT, "shapes", "none", labels, total, {}, tuple(infos), {}))
        return folder

    return make


@pytest.fixture
def make_backbone(tmp_path: Path) -> MakeBackbone:
    """make_backbone(name, seed): export random weights as a backbone; return backbone.safetensors."""

    def make(folder: str = "backbone", model: str = MODEL, seed: int = 7, size: int = 32) -> Path:
        torch.manual_seed(seed)
        network = build_backbone(model)
        card = BackboneMetadata(
            model, "online", int(network.num_features), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), size, {"step": 1}
        )  # type: ignore[arg-type]
        path = tmp_path / folder / "backbone.safetensors"
        path.parent.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
        path.with_name("backbone.json").write_text(json.dumps(asdict(card)))
        return path

    return make
