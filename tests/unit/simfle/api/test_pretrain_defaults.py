"""Defaults of a pretraining run: by images and device, below the user's values, the same for a rerun."""

import json
from pathlib import Path

import pytest
from helpers.data_fixtures import drawn_corpus

from simfle.api.pretrain_defaults import RECIPES, _batch, choose_defaults, write_defaults
from simfle.config.schema import PretrainConfig, load
from simfle.errors import UserError
from simfle.runtime.run_files import MARKER
from simfle.train.preflight import check

CPU = "train.device=cpu"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(drawn_corpus(tmp_path_factory.mktemp("shards") / "faces", (30, 20)))


@pytest.mark.parametrize(
    ("device", "images", "processes", "batch"),
    [
        ("cpu", 32, 1, 16),
        ("cpu", 200, 1, 64),
        ("cpu", 100, 3, 48),
        ("cuda", 300, 1, 128),
        ("cuda", 100_000, 8, 256),
        ("cuda", 100_000, 6, 192),
    ],
)
def test_batches_are_powers_of_two_per_process(device: str, images: int, processes: int, batch: int) -> None:
    assert _batch(RECIPES[device], images, processes) == batch


@pytest.mark.parametrize(("images", "processes"), [(31, 1), (40, 16)])
def test_too_few_images_are_refused(images: int, processes: int) -> None:
    with pytest.raises(UserError, match=f"only {images} images for training"):
        _batch(RECIPES["cpu"], images, processes)


def test_the_configuration_is_complete_and_valid(corpus: str, tmp_path: Path) -> None:
    found = choose_defaults(tmp_path, [corpus], [CPU], 1)
    assert (found.config, found.images, found.device) == ("configs/pretrain/faces_cpu.yaml", 50, "cpu")
    assert found.values == {"train.global_batch": 16, "train.steps": 300, "views.size": 64, "views.face_size": 64}
    assert str(found) == (
        "defaults for 50 images on cpu: configs/pretrain/faces_cpu.yaml train.global_batch=16 train.steps=300 "
        "views.size=64 views.face_size=64"
    )
    check(load(PretrainConfig, found.file, [f"data.shards=[{corpus}]", *found.words()]))
    # On a GPU; none is needed to choose.
    found = choose_defaults(tmp_path, [corpus], ["train.device=cuda"], 1)
    assert (found.config, found.values) == (
        "configs/pretrain/simfle_resnet50.yaml",
        {"train.global_batch": 16, "train.steps": 2000},
    )


def test_values_of_the_user_are_left_out(corpus: str, tmp_path: Path) -> None:
    words = [CPU, "train.global_batch=2", "views.size=96"]
    assert choose_defaults(tmp_path, [corpus], words, 1).values == {"train.steps": 300, "views.face_size": 64}
    words = [CPU, "train.epochs=3", "views.size=96", "views.face_size=96"]
    assert choose_defaults(tmp_path, [corpus], words, 1).values == {"train.global_batch": 16}
    words = [CPU, "train.global_batch=1"]  # 400 steps are 8 epochs
    assert choose_defaults(tmp_path, [corpus], words, 1).values["train.steps"] == 400


def test_a_started_run_keeps_its_defaults(corpus: str, tmp_path: Path) -> None:
    first = choose_defaults(tmp_path, [corpus], [CPU], 1)
    write_defaults(tmp_path, first)
    on_gpu = ["train.device=cuda"]
    assert choose_defaults(tmp_path, [corpus], on_gpu, 1) != first  # it never began
    (tmp_path / "checkpoints" / "step-00000100").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000100" / MARKER).write_text("")
    assert choose_defaults(tmp_path, [corpus], on_gpu, 1) == first
    file = tmp_path / "defaults.json"
    for wrong in ("{", "[]", json.dumps({"config": "../x.yaml", "images": 1, "device": "cpu"}), '{"a": 1}'):
        file.write_text(wrong)
        with pytest.raises(UserError, match=r"defaults\.json: corrupt"):
            choose_defaults(tmp_path, [corpus], on_gpu, 1)
