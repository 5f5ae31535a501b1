"""`simfle pretrain FOLDER --out RUN`: shards, defaults, training and export in one command; rerun to resume."""

import json
import logging
from pathlib import Path

import pytest
from distributed.runs import SETTINGS
from typer.testing import CliRunner

import shards
import simfle
from simfle.commands.main import app
from simfle.runtime.run_files import parse_metrics

pytestmark = pytest.mark.slow

TINY = [*(word for word in SETTINGS if "global_batch" not in word), "train.steps=2"]


@pytest.fixture
def pictures(faces: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for item in shards.open(faces)[:34]:
        (folder / f"{item.key}.jpg").write_bytes(item.image_bytes)
    return folder


def pretrain(*words: object) -> str:
    done = CliRunner().invoke(app(), ["pretrain", *map(str, words)])
    if done.exception:
        raise done.exception
    return done.output


def test_from_images_to_a_backbone_and_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    run = tmp_path / "run"
    said = pretrain(pictures, "--out", run, *TINY, "train.stop_after_step=1")
    assert "defaults for 34 images on cpu: configs/pretrain/faces_cpu.yaml train.global_batch=16" in said
    assert "after step 1" in said
    assert not (run / "export").exists()
    assert json.loads((run / "defaults.json").read_text())["values"] == {"train.global_batch": 16}
    said = pretrain(pictures, "--out", run, *TINY)
    backbone = run / "export" / "online" / "backbone.safetensors"
    assert f"backbone: {backbone}" in said
    assert f"simfle embed {run}/shards {run} {run}/features.npz" in said
    assert [line["step"] for line in parse_metrics((run / "metrics.jsonl").read_bytes())] == [1, 2]
    before = backbone.read_bytes()
    # The function takes the same run for its own.
    settings = dict(word.split("=", 1) for word in TINY)
    assert simfle.pretrain(pictures, run, settings=settings) == backbone
    assert backbone.read_bytes() == before
    assert len(simfle.embed(pictures, run)["features"]) == 34


def test_out_is_the_run_folder_of_a_configuration(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    words = [f"data.shards=[{faces}]", *TINY, "train.global_batch=16", "train.steps=1"]
    pretrain("configs/pretrain/faces_cpu.yaml", "--out", tmp_path / "run", *words)
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    assert not (tmp_path / "run" / "defaults.json").exists()
