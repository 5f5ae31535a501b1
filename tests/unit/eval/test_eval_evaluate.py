"""The whole evaluation, as users start it: the same numbers every time, honest comparison, one line for errors."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from eval_fixtures import MakeBackbone, MakeShards
from safetensors.torch import load_file, save_file

from simfle.errors import UserError
from simfle.eval import summary as results
from simfle.eval.config import EvalConfig
from simfle.eval.evaluate import evaluate

ROOT = Path(__file__).parents[3]
COUNTS = {"train": [40, 40, 40], "test": [16, 16, 16]}


@pytest.fixture
def config(make_shards: MakeShards, make_backbone: MakeBackbone, tmp_path: Path) -> EvalConfig:
    return EvalConfig(
        shards=[str(make_shards(COUNTS))],
        backbones=[str(make_backbone())],
        seeds=[0, 1],
        epochs=5,
        augment=False,
        threads=2,
        resamples=50,
        out=str(tmp_path / "results.json"),
    )


def changed(config: EvalConfig, **values: object) -> EvalConfig:
    return EvalConfig(**{**vars(config), **values})  # type: ignore[arg-type]


def test_rows_for_each_backbone_protocol_and_seed(config: EvalConfig) -> None:
    found = evaluate(config, ["python", "launchers/evaluate.py"])
    rows = [(row["kind"], row["protocol"], row["seed"]) for row in found.rows]
    # Nothing in the kNN of one given backbone depends on a seed; random backbones differ by seed.
    assert rows == [
        ("online", "linear", 0),
        ("online", "linear", 1),
        ("online", "knn", 0),
        ("random", "linear", 0),
        ("random", "linear", 1),
        ("random", "knn", 0),
        ("random", "knn", 1),
    ]
    assert [(row["kind"], row["protocol"], row["seeds"]) for row in found.summary] == [
        ("online", "linear", 2),
        ("online", "knn", 1),
        ("random", "linear", 2),
        ("random", "knn", 2),
    ]
    assert found.rows[3]["confusion"] != found.rows[4]["confusion"]
    for row in found.rows:
        confusion = torch.tensor(row["confusion"])
        assert confusion.sum(1).tolist() == [16, 16, 16]
        assert row["balanced_accuracy"] == pytest.approx((confusion.diagonal() / 16).mean().item())
        assert 0 <= row["interval"][0] <= row["interval"][1] <= 1
    mean = (found.rows[3]["balanced_accuracy"] + found.rows[4]["balanced_accuracy"]) / 2
    assert found.summary[2]["balanced_accuracy"] == pytest.approx(mean)
    assert found.data["chance"] == pytest.approx(1 / 3)
    assert found.data["train"] == {"split": "train", "samples": 120, "people": 60, "counts": [40, 40, 40]}


def test_shapes_are_told_apart(config: EvalConfig) -> None:
    """Even random features tell stripes, circles and crosses apart above chance (1/3)."""
    found = evaluate(changed(config, epochs=100, protocols=["linear"]), [])
    assert all(row["balanced_accuracy"] > 0.45 for row in found.rows)


def test_twice_the_same_file(config: EvalConfig, tmp_path: Path) -> None:
    for augment in (False, True):
        texts = []
        for _ in range(2):
            evaluate(changed(config, augment=augment, epochs=2), ["x"])
            texts.append(Path(config.out).read_bytes())
        assert texts[0] == texts[1]


def test_standardised_features_do_not_depend_on_their_scale(config: EvalConfig, tmp_path: Path) -> None:
    """The last BatchNorm twice as large gives twice the features: only a probe without standardising notices."""
    path = Path(config.backbones[0])
    tensors = load_file(path)
    last = "layer4.0.bn2"
    known = {key for key in tensors if key.startswith("layer4.0.")}
    for name in (last, "layer4.0.downsample.2"):
        for part in ("weight", "bias"):
            assert f"{name}.{part}" in known
            tensors[f"{name}.{part}"] *= 2
    other = tmp_path / "twice" / "backbone.safetensors"
    other.parent.mkdir()
    save_file(tensors, other)
    other.with_name("backbone.json").write_bytes(path.with_name("backbone.json").read_bytes())
    both = changed(config, backbones=[str(path), str(other)], random=False, protocols=["linear"], seeds=[0])
    same, plain = evaluate(changed(both, standardise=True), []), evaluate(both, [])
    assert same.rows[0]["confusion"] == same.rows[1]["confusion"]
    assert plain.rows[0]["confusion"] != plain.rows[1]["confusion"]


def test_augmentation_is_used(config: EvalConfig) -> None:
    plain = evaluate(changed(config, protocols=["linear"]), [])
    augmented = evaluate(changed(config, protocols=["linear"], augment=True), [])
    assert plain.rows[0]["confusion"] != augmented.rows[0]["confusion"]


def test_one_random_backbone_for_online_and_target(config: EvalConfig, make_backbone: MakeBackbone) -> None:
    other = str(make_backbone("target", seed=8))
    found = evaluate(changed(config, backbones=[*config.backbones, other], protocols=["knn"], seeds=[0]), [])
    assert [row["backbone"] for row in found.rows] == [config.backbones[0], "random test_resnet", other]


def test_left_out_classes_are_listed(
    config: EvalConfig, make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_shards({"train": [10, 10, 3], "test": [5, 5, 1]}, name="uneven")
    found = evaluate(changed(config, shards=[str(folder)], min_class_count=5, protocols=["knn"]), [])
    assert found.data["left_out"] == {"stripes": 4}
    assert found.data["classes"] == ["circle", "cross"]
    assert "class stripes is left out: 4 images" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocols": ["svm"]}, "protocols: 'svm' is unknown; there are: linear, knn"),
        ({"test_split": "train"}, "is the training split too"),
        ({"test_split": "val"}, "no split 'val' in these shards; there are: test, train"),
        ({"k": 0}, "k: 0 must be at least 1"),
        ({"backbones": []}, "none given"),
        ({"shards": []}, "no folder of shards"),
        ({"shards": ["nowhere"]}, "nowhere is not a folder"),
        ({"device": "tpu"}, "device: 'tpu' is unknown"),
        ({"min_class_count": 1000}, "at least two classes"),
        ({"seeds": [-1]}, "seed"),
    ],
)
def test_errors_leave_nothing_behind(config: EvalConfig, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(changed(config, **change), [])
    assert not Path(config.out).exists()


def test_command_line(config: EvalConfig, tmp_path: Path) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text(f"shards: ['{config.shards[0]}']\nepochs: 2\naugment: false\nresamples: 20\n")
    launcher = [sys.executable, str(ROOT / "launchers/evaluate.py")]
    words = [*launcher, str(file), "--backbone", config.backbones[0], f"out={config.out}", "protocols=[knn]"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "random" in done.stdout
    assert config.out in done.stdout
    found = results.read(Path(config.out))
    assert found.command == ["python", *words[1:]]
    assert found.config["epochs"] == 2
    assert found.versions["torch"] == version("torch")
    failed = subprocess.run([*words, "epoch=2"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: config: unknown key 'epoch'")
    assert failed.stderr.endswith("did you mean epochs?\n")
    assert failed.stderr.count("\n") == 1


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(UserError, match="does not exist"):
        results.read(path)
    path.write_text(json.dumps({"format": 2}))
    with pytest.raises(UserError, match="format 2"):
        results.read(path)
    path.write_text("[")
    with pytest.raises(UserError, match="damaged"):
        results.read(path)
