"""`simfle.predict` and `simfle predict`: by the probe that an evaluation stored, on its backbone only."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.eval_fixtures import MakeBackbone, MakeShards, picture
from pyarrow import parquet
from typer.testing import CliRunner

import simfle
from simfle.api.prediction import find_probe
from simfle.commands.main import app
from simfle.eval.analysis.results import Result, read_results
from simfle.eval.config import EvalConfig, LinearFastConfig
from simfle.eval.evaluator import evaluate

pytestmark = pytest.mark.slow


@pytest.fixture
def run(make_backbone: MakeBackbone, tmp_path: Path) -> Path:
    """A run folder with an exported backbone."""
    make_backbone("run/export/online")
    return tmp_path / "run"


@pytest.fixture
def config(run: Path, make_shards: MakeShards) -> EvalConfig:
    return EvalConfig(
        shards=[str(make_shards({"train": [40, 40, 40], "test": [16, 16, 20]}))],
        backbones=[str(run / "export" / "online" / "backbone.safetensors")],
        protocols=["linear_fast"],
        val_fraction=0.2,
        linear_fast=LinearFastConfig(epochs=20, batch=32),
        threads=2,
        bootstrap_samples=50,
        out=str(run / "eval"),
    )


def result_of(run: Path) -> Result:
    (found,) = (each for each in read_results([run]) if each.backbone["kind"] == "online" and each.seed == 0)
    return found


def test_predictions_are_those_of_the_evaluation(config: EvalConfig, run: Path, tmp_path: Path) -> None:
    evaluate(replace(config, seeds=[0, 1]), [])
    assert sorted(file.name for file in run.rglob("probe-*.json")) == ["probe-0.json", "probe-1.json"]  # none of random
    result, shards = result_of(run), config.shards[0]
    found = simfle.predict(shards, run, tmp_path / "all.csv", splits="test")
    place = {key: number for number, key in enumerate(found["key"])}
    rows = [place[key] for key in result.samples.keys]
    assert [result.classes.index(name) for name in found["expression"][rows]] == result.samples.predictions
    assert np.mean(found["expression"] == found["label"]) == pytest.approx(result.metrics["accuracy"])
    chances = np.stack([found[f"p_{name}"] for name in result.classes], axis=1)
    np.testing.assert_allclose(chances.sum(1), 1)
    assert np.array_equal(chances.max(1), found["probability"])
    with (tmp_path / "all.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == list(found)
    assert [float(row["probability"]) for row in table] == found["probability"].tolist()
    # The backbone's file and a named probe, of a folder of images.
    (tmp_path / "faces").mkdir()
    for number in range(3):
        (tmp_path / "faces" / f"{number}.jpg").write_bytes(picture(2, 1000 + 200 + number))
    weights = config.backbones[0]
    probe = next(run.rglob("probe-0.safetensors"))
    again = simfle.predict(tmp_path / "faces", weights, tmp_path / "faces.parquet", probe=probe)
    one = simfle.predict(tmp_path / "faces" / "1.jpg", weights)
    assert one["probability"] == pytest.approx(again["probability"][1], rel=1e-5)
    assert parquet.read_table(tmp_path / "faces.parquet").column("expression").to_pylist() == list(again["expression"])


def test_the_command_prints_limits_and_a_table(config: EvalConfig, run: Path, tmp_path: Path) -> None:
    evaluate(replace(config, random_baseline=False), [])
    accuracy = result_of(run).metrics["accuracy"]
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.jpg").write_bytes(picture(0, 5000))
    for data in ("faces/a.jpg", "faces"):
        done = CliRunner().invoke(app(), ["predict", str(tmp_path / data), str(run)])
        assert done.exit_code == 0, done.output
        assert f"accuracy {accuracy:.3f} (95 % " in done.stderr
        assert "fitted on " in done.stderr
        assert "Not for decisions about persons" in done.stderr
        assert "accuracy" not in done.stdout
    assert done.stdout.splitlines()[0] == (
        "path,key,split,label,person,expression,probability,p_circle,p_cross,p_stripes"
    )
    assert done.stdout.splitlines()[1].startswith("a.jpg,a.jpg,")


def test_another_backbone_and_no_probe_are_refused(
    config: EvalConfig, run: Path, make_backbone: MakeBackbone, tmp_path: Path
) -> None:
    shards = config.shards[0]
    with pytest.raises(simfle.UserError, match=r"probe: none of .*run in .*Fix: run simfle evaluate"):
        simfle.predict(shards, run)
    evaluate(replace(config, random_baseline=False), [])
    probe, other = next(run.rglob("probe-0.json")), make_backbone("other", seed=8)
    with pytest.raises(simfle.UserError, match="was fitted on another backbone") as error:
        simfle.predict(shards, other, probe=probe)
    assert "\n" not in str(error.value)
    shutil.copy(other, config.backbones[0])  # exported again: the probe no longer fits
    with pytest.raises(simfle.UserError, match="none of"):
        simfle.predict(shards, run)
    with pytest.raises(simfle.UserError, match="a loaded backbone has no file"):
        simfle.predict(shards, simfle.load_backbone("random:test_resnet+size=32"))  # type: ignore[arg-type]
    with pytest.raises(simfle.UserError, match="unknown format"):
        simfle.predict(shards, run, tmp_path / "out.txt")


def test_several_benchmarks_need_a_name(config: EvalConfig, run: Path, tmp_path: Path) -> None:
    for name, classes in (("two", "[circle, cross]"), ("three", "[cross, circle, stripes]")):
        (tmp_path / f"{name}.yaml").write_text(f"classes: {classes}\nval_fraction: 0.2\n")
    shards = config.shards[0]
    named = [f"{tmp_path}/{name}.yaml={shards}" for name in ("two", "three")]
    evaluate(
        replace(
            config,
            random_baseline=False,
            shards=[],
            benchmarks=named,
            val_fraction=0.1,
            protocols=["linear_fast@0.5", "linear_fast"],
            seeds=[1, 0],
        ),
        [],
    )
    with pytest.raises(simfle.UserError, match=r"has those of three, two\. Fix: name one, as in --probe three"):
        simfle.predict(shards, run)
    assert find_probe(run, "two") == next(run.rglob("two/linear_fast/probe-0.json"))  # all labels, the lowest seed
    assert set(simfle.predict(shards, run, probe="two")["expression"]) <= {"circle", "cross"}
    with pytest.raises(simfle.UserError, match=r"none of .* for four\."):
        simfle.predict(shards, run, probe="four")


def test_only_probes_of_the_backbone_as_it_is_are_kept(config: EvalConfig, run: Path) -> None:
    config = replace(config, random_baseline=False, image_size=48)
    evaluate(config, [])
    accuracy = result_of(run).metrics["accuracy"]
    found = simfle.predict(config.shards[0], run, splits="test")  # at 48 px, not the backbone's 32
    assert np.mean(found["expression"] == found["label"]) == pytest.approx(accuracy)
    evaluate(replace(config, recalibrate_bn="all"), [])  # replaces the result; the file's statistics are others
    assert not list(run.rglob("probe-*"))
