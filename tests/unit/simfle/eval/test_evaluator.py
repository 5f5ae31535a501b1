"""The whole evaluation as users start it: units, skipping, reproducible numbers, one-line errors."""

import json
import logging
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers import eval_fixtures
from helpers.cli_runner import run
from helpers.eval_fixtures import MakeBackbone, MakeShards
from helpers.http_server import served
from safetensors.torch import load_file, save_file

from shards.io import urls
from simfle.config.schema import DataConfig, PretrainConfig, TrainConfig
from simfle.errors import UserError
from simfle.eval.analysis.results import read_result, read_results
from simfle.eval.analysis.summary import grouped, read_summary
from simfle.eval.config import EvalConfig, KnnConfig, LinearConfig, LinearFastConfig
from simfle.eval.evaluator import evaluate, run_task
from simfle.eval.tasks import eval_tasks
from simfle.report.report import write_report
from simfle.train.run_dir import record_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
COUNTS = {"train": [40, 40, 40], "test": [16, 16, 16]}


@pytest.fixture
def config(make_shards: MakeShards, make_backbone: MakeBackbone, tmp_path: Path) -> EvalConfig:
    return EvalConfig(
        shards=[str(make_shards(COUNTS))],
        backbones=[str(make_backbone())],
        protocols=["linear_fast", "knn"],
        seeds=[0, 1],
        val_fraction=0.2,
        linear_fast=LinearFastConfig(epochs=20, batch=32),
        linear=LinearConfig(epochs=2),
        threads=2,
        bootstrap_samples=50,
        out=str(tmp_path / "eval"),
    )


def contents(config: EvalConfig) -> dict[str, dict]:
    """Return per file the values that must be identical in every computation."""
    found = {}
    for path in sorted(Path(config.out).rglob("seed-*.json")):
        content = json.loads(path.read_bytes())
        for name in ("seconds", "command", "config"):
            content.pop(name)
        found[str(path.relative_to(config.out))] = content
    return found


def test_units_for_each_backbone_protocol_and_seed(config: EvalConfig) -> None:
    wanted = replace(config, protocols=["linear_fast", "knn", "knn@0.5", "finetune", "scratch"])
    found = [(unit.random, unit.protocol, unit.seed) for unit in eval_tasks(wanted)]
    # kNN of a given backbone does not depend on a seed unless labels are sampled; random backbones differ by seed;
    # scratch is for random backbones only, and replaces their fine-tuning.
    assert found == [
        *((False, word, seed) for word in ("linear_fast",) for seed in (0, 1)),
        (False, "knn", 0),
        *((False, word, seed) for word in ("knn@0.5", "finetune") for seed in (0, 1)),
        *((True, word, seed) for word in ("linear_fast", "knn", "knn@0.5", "scratch") for seed in (0, 1)),
    ]
    assert eval_tasks(wanted) == eval_tasks(wanted)
    assert len({unit.path(wanted) for unit in eval_tasks(wanted)}) == len(found)
    only = replace(config, random_baseline=False, protocols=["scratch"])
    assert [(unit.random, unit.protocol) for unit in eval_tasks(only)] == [(True, "scratch")] * 2


def test_one_random_backbone_for_online_and_target(config: EvalConfig, make_backbone: MakeBackbone) -> None:
    other = str(make_backbone("target", seed=8))
    found = eval_tasks(replace(config, backbones=[*config.backbones, other], protocols=["knn"], seeds=[0]))
    assert [unit.random for unit in found] == [False, True, False]
    assert len({unit.id for unit in found}) == 3
    larger = str(make_backbone("larger", size=48))
    found = eval_tasks(replace(config, backbones=[*config.backbones, larger], protocols=["knn"], seeds=[0]))
    assert len({unit.id for unit in found if unit.random}) == 2


def test_files_hold_what_is_needed_to_get_them_again(config: EvalConfig) -> None:
    summary = evaluate(config, ["python", "launchers/evaluate.py"])
    found = read_results([config.out])
    assert len(found) == len(eval_tasks(config)) == 7
    online = [each for each in found if each.backbone["kind"] == "online"]
    random = [each for each in found if each.backbone["kind"] == "random" and each.protocol == "linear_fast"]
    assert random[0].samples.predictions != random[1].samples.predictions
    assert random[0].backbone["sha256"] != random[1].backbone["sha256"]
    for each in found:
        assert sum(each.metrics["confusion"][0]) == 16
        recall = [row[place] / 16 for place, row in enumerate(each.metrics["confusion"])]
        assert each.score == each.metrics["balanced_accuracy"] == pytest.approx(sum(recall) / 3)
        assert each.metrics["recall"] == pytest.approx(recall)
        low, high = each.metrics["intervals"]["balanced_accuracy"]
        assert 0 <= low <= each.score <= high <= 1
        assert each.best_on_test is not None
        assert each.best_on_test["balanced_accuracy"] >= each.score
        assert 0 <= each.chosen[0]["balanced_accuracy"] <= 1
        assert all(key.startswith("test-") for key in each.samples.keys)
        assert [int(key.split("-")[1]) for key in each.samples.keys] == each.samples.labels
        assert each.data["train"]["samples"] + each.data["val"]["samples"] == 120
        assert each.data["chance"] == pytest.approx(1 / 3)
        assert each.versions["torch"] == version("torch")
        assert each.command == ["python", "launchers/evaluate.py"]
    assert online[0].backbone["file"] == config.backbones[0]
    rows = {(row.kind, row.protocol): row for row in summary.table}
    assert {key: row.seeds for key, row in rows.items()} == {
        ("online", "linear_fast"): 2,
        ("online", "knn"): 1,
        ("random", "linear_fast"): 2,
        ("random", "knn"): 2,
    }
    assert rows["random", "linear_fast"].score == pytest.approx((random[0].score + random[1].score) / 2)
    assert [(pair.protocol, pair.second.split("-")[0]) for pair in summary.comparisons] == [
        ("linear_fast", "random"),
        ("knn", "random"),
    ]
    written = read_summary(Path(config.out) / "summary.json")
    assert [row["score"] for row in written["table"]] == [row.score for row in summary.table]


def test_shapes_are_told_apart(config: EvalConfig) -> None:
    """Even random features separate stripes, circles and crosses better than chance (1/3)."""
    wanted = replace(config, seeds=[0], protocols=["linear_fast"], linear_fast=LinearFastConfig())
    scores = {row.kind: row.score for row in evaluate(wanted, []).table}
    assert min(scores.values()) > 0.45, scores


def test_twice_the_same_and_what_is_done_is_skipped(
    config: EvalConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, protocols=["linear", "linear_fast@0.5"])
    evaluate(config, [])
    first = contents(config)
    evaluate(replace(config, out=str(tmp_path / "again")), [])
    assert contents(replace(config, out=str(tmp_path / "again"))) == first
    times = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("seed-*.json")}
    with caplog.at_level(logging.INFO):
        evaluate(config, [])
    assert caplog.text.count("already complete") == len(times) == 8
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_another_setting_is_computed_again_only_where_it_counts(config: EvalConfig) -> None:
    config = replace(config, seeds=[0], random_baseline=False)
    evaluate(config, [])
    before = {each.protocol: each for each in read_results([config.out])}
    evaluate(replace(config, knn=KnnConfig(ks=[3])), [])
    after = {each.protocol: each for each in read_results([config.out])}
    assert after["linear_fast"].identity == before["linear_fast"].identity
    assert after["knn"].identity != before["knn"].identity
    assert after["knn"].chosen[0]["k"] == 3


@pytest.mark.parametrize("change", ["data", "decoded"])
def test_other_data_and_other_decoders_are_computed_again_and_kept_apart(
    config: EvalConfig, make_shards: MakeShards, change: str
) -> None:
    if change == "decoded":
        pytest.importorskip("nvidia.dali")
    config = replace(config, protocols=["linear_fast"], random_baseline=False, seeds=[0])
    evaluate(config, [])
    (first,) = read_results([config.out])
    fewer = [str(make_shards({"train": [40, 40, 36], "test": [16, 16, 16]}, name="fewer"))]
    other = replace(config, shards=fewer) if change == "data" else replace(config, decoder="dali")
    evaluate(other, [])
    (second,) = read_results([config.out])
    assert second.identity != first.identity
    together = [first, replace(second, seed=1)]
    if change == "data":
        assert [key[0] for key in grouped(together)] == ["own (shards)", "own (fewer)"]
    else:
        with pytest.raises(UserError, match=r"differ in decoded \(\['opencv', 'opencv'\] and \['dali', 'dali'\]\)"):
            grouped(together)


def test_killed_and_started_again_gives_the_same(config: EvalConfig, tmp_path: Path) -> None:
    """SIGKILL after the first unit; a second start computes the rest."""
    other = replace(config, out=str(tmp_path / "killed"))
    evaluate(config, [])
    program = (
        "import os, signal\n"
        "from simfle.eval import evaluator as e\n"
        "from simfle.eval.config import *\n"
        "write = e.write_result\n"
        "def die(*words):\n"
        "    write(*words)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "e.write_result = die\n"
        f"e.evaluate({other!r}, [])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert len(list(Path(other.out).rglob("seed-*.json"))) == 1
    summary = evaluate(other, [])
    assert contents(other) == contents(config)
    assert len(summary.table) == 4


def test_several_processes_share_the_work(config: EvalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert sum(row.seeds for row in evaluate(config, []).table) == 3
    monkeypatch.setenv("RANK", "0")
    assert sum(row.seeds for row in evaluate(config, []).table) == 7
    # After a change, a unit that the other process has yet to recompute does not count as complete.
    monkeypatch.setenv("RANK", "1")
    stale = replace(config, knn=KnnConfig(ks=[3]))
    mine = [unit for unit in eval_tasks(stale)[1::2] if unit.protocol == "knn"]
    found = {row.protocol: 0 for row in evaluate(stale, []).table}
    for row in evaluate(stale, []).table:
        found[row.protocol] += row.seeds
    assert found == {"linear_fast": 4, "knn": len(mine)}


def test_one_unit_as_a_job_array_runs_it(config: EvalConfig) -> None:
    unit = eval_tasks(config)[2]
    found = run_task(config, unit, ["job"])
    assert found == read_result(unit.path(config))
    assert (found.protocol, found.seed) == (unit.protocol, unit.seed)
    assert len(list(Path(config.out).rglob("seed-*.json"))) == 1


def test_standardised_features_do_not_depend_on_their_scale(config: EvalConfig, tmp_path: Path) -> None:
    """Doubling the last BatchNorm doubles the features and keeps the predictions."""
    path = Path(config.backbones[0])
    tensors = load_file(path)
    for name in ("layer4.0.bn2", "layer4.0.downsample.2"):
        for part in ("weight", "bias"):
            tensors[f"{name}.{part}"] *= 2
    other = tmp_path / "twice" / "backbone.safetensors"
    other.parent.mkdir()
    save_file(tensors, other)
    other.with_name("backbone.json").write_bytes(path.with_name("backbone.json").read_bytes())
    both = replace(
        config, backbones=[str(path), str(other)], random_baseline=False, protocols=["linear_fast"], seeds=[0]
    )
    evaluate(both, [])
    first, second = read_results([config.out])
    assert first.samples == second.samples
    assert first.backbone["sha256"] != second.backbone["sha256"]


def test_folds_test_everybody_once(config: EvalConfig, tmp_path: Path) -> None:
    file = tmp_path / "folds.yaml"
    file.write_text("test: ''\nfolds: 3\nval_fraction: 0.2\nprotocols: [knn]\n")
    words = [f"{file}={config.shards[0]}"]
    summary = evaluate(replace(config, benchmarks=words, protocols=[], random_baseline=False, seeds=[0]), [])
    (found,) = read_results([config.out])
    assert len(found.chosen) == 3
    assert found.benchmark == "folds"
    assert len(set(found.samples.keys)) == len(found.samples.keys) == 120 == summary.table[0].samples
    assert found.best_on_test is not None
    assert len(found.best_on_test["folds"]) == 3


def test_left_out_classes_are_listed(
    config: EvalConfig, make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_shards({"train": [10, 10, 3], "test": [5, 5, 1]}, name="uneven")
    evaluate(replace(config, shards=[str(folder)], min_class_count=5, protocols=["knn"]), [])
    found = read_results([config.out])[0]
    assert found.data["left_out"] == {"stripes": 4}
    assert found.classes == found.data["classes"] == ["circle", "cross"]
    assert "class stripes is excluded: 4 images" in caplog.text


def test_people_of_the_test_in_training_are_told(
    config: EvalConfig, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def about(split: str, label: int, number: int, size: int) -> dict[str, object]:
        return {**alone(split, label, number, size), "group": f"person {number % 100 // 2}"}  # in both splits

    alone = eval_fixtures.about
    monkeypatch.setattr(eval_fixtures, "about", about)
    folder = make_shards({"train": [10, 10, 10], "test": [4, 4, 4]}, name="shared")
    evaluate(replace(config, shards=[str(folder)], protocols=["knn"], random_baseline=False), [])
    line = "own: 2 people of split test are also in split train; simfle shards split assigns each person to one split"
    assert line in caplog.text
    assert read_results([config.out])[0].data["differs"] == [line]


def test_a_protocol_without_its_labels_is_left_out_where_they_lack(
    config: EvalConfig,
    make_shards: MakeShards,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With valence and arousal in only one of two sets, as in AffectNet, the possible units are measured."""
    whole = eval_fixtures.about
    monkeypatch.setattr(eval_fixtures, "about", lambda *words: {**whole(*words), "extras": {}})
    words = []
    for name, folder in (("bare", make_shards(COUNTS, name="without")), ("whole", config.shards[0])):
        file = tmp_path / f"{name}.yaml"
        file.write_text("val_fraction: 0.2\n")
        words.append(f"{file}={folder}")
    own = replace(config, benchmarks=words, protocols=["affect", "knn"], random_baseline=False, shards=[])
    summary = evaluate(own, [])
    assert [(row.benchmark, row.protocol) for row in summary.table] == [
        ("bare", "knn"),
        ("whole", "affect"),
        ("whole", "knn"),
    ]
    assert caplog.text.count("bare / affect is skipped: shards: split 'train' has no valence and arousal") == 1
    with pytest.raises(UserError, match="has no valence and arousal"):
        evaluate(replace(own, benchmarks=words[:1], protocols=["affect"], out=str(tmp_path / "nothing")), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocols": ["svm"]}, "protocols=svm: unknown. Fix: choose from linear, linear_fast, knn"),
        (
            {"protocols": ["knn@2"]},
            "knn@2: the fraction of labels is out of range. Fix: choose more than 0 and at most 1",
        ),
        ({"protocols": ["knn@few"]}, "knn@few: the fraction of labels"),
        ({"test_split": "train"}, "not different splits: train, train"),
        (
            {"test_split": "val"},
            "test_split=val: no split 'val' in these shards, only test, train. Fix: set test_split=test.",
        ),
        ({"knn": KnnConfig(ks=[0])}, r"knn.ks=\[0\]: must be one or more numbers, each at least 1"),
        (
            {"linear_fast": LinearFastConfig(lrs=[])},
            r"linear_fast.lrs=\[\]: must be one or more numbers, each above 0",
        ),
        ({"backbones": []}, r"backbones=\[\]: empty"),
        ({"backbones": ["nowhere"]}, "does not exist"),
        (
            {"linear": LinearConfig(scale=[0.5])},
            r"linear.scale=\[0.5\]: must be two ascending numbers, each above 0, at most 1",
        ),
        (
            {"linear": LinearConfig(momentum=-1.0)},
            "linear.momentum=-1.0: must be at least 0, below 1",
        ),
        ({"shards": []}, r"benchmarks=\[\]: empty"),
        ({"shards": ["nowhere"]}, "nowhere is not a folder"),
        ({"device": "tpu"}, "device='tpu': must be auto, cpu or cuda"),
        ({"min_class_count": 1000}, "at least two classes"),
        ({"seeds": [-1]}, r"seeds=\[-1\]: must be one or more distinct numbers, each at least 0"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: must be one or more distinct numbers, each at least 0"),
    ],
)
def test_errors_leave_nothing_behind(config: EvalConfig, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        evaluate(replace(config, **change), [])
    assert "\n" not in str(error.value)
    assert not Path(config.out).exists()


def test_a_backbone_of_another_shape(config: EvalConfig) -> None:
    card = Path(config.backbones[0]).with_name("backbone.json")
    card.write_text(json.dumps({**json.loads(card.read_text()), "name": "resnet18", "features": 512}))
    with pytest.raises(UserError, match="is not a resnet18: lacks"):
        evaluate(config, [])


def test_command_line(config: EvalConfig, tmp_path: Path) -> None:
    file = tmp_path / "eval.yaml"
    peers = "backbones: ['random:test_resnet+size=32']"
    file.write_text(f"shards: ['{config.shards[0]}']\nlinear_fast: {{epochs: 2}}\nbootstrap_samples: 20\n{peers}\n")
    launcher = [sys.executable, str(ROOT / "launchers/evaluate.py")]
    out = f"{config.out} of [d]"  # a name that rich would parse as markup
    words = [*launcher, str(file), "--backbone", config.backbones[0], f"out={out}", "protocols=[knn]"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert "random-test_resnet" in done.stdout
    assert done.stdout.endswith(f"results: {out}\n")
    sources = {found.backbone["source"] for found in read_results([out])}
    assert sources == {config.backbones[0], "random:test_resnet+size=32", "random, seed 0"}
    found = read_results([out])[0]
    assert found.command == ["python", *words[1:]]
    assert found.config["linear_fast"]["epochs"] == 2
    failed = subprocess.run([*words, "fast.epoch=2"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: config: unknown key 'fast.epoch'")
    assert failed.stderr.endswith("did you mean linear_fast.epochs?\n")
    assert failed.stderr.count("\n") == 1


def test_the_command_that_slurm_eval_prints_makes_the_table_of_its_tasks(config: EvalConfig, tmp_path: Path) -> None:
    """Run the printed command in another folder. Slurm's programs are scripts here."""
    for name, line in (("sbatch", "echo Submitted batch job 17"), ("srun", "exit 1")):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    program = [sys.executable, "-m", "simfle"]
    words = ["slurm", "eval", "--cluster", str(ROOT / "simfle/configs/cluster/cpu.yaml"), "--protocols", "knn"]
    words += ["--seeds", "2", "--backbone", config.backbones[0], "shards=[shards]", "out=my results", "device=cpu"]
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    own |= {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=True, cwd=tmp_path, env=own)
    assert "job 17: 3 tasks" in done.stderr
    printed = shlex.split(done.stderr.splitlines()[-1].partition("the table with: ")[2])
    assert printed[0] == "simfle"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([*program, *printed[1:]], capture_output=True, text=True, check=True, cwd=elsewhere, env=own)
    assert "3 of 3 tasks are complete" in done.stderr
    assert len(read_results([str(tmp_path / "my results")])) == 3
    assert list(elsewhere.iterdir()) == []


def test_summaries_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with pytest.raises(UserError, match="does not exist"):
        read_summary(path)
    path.write_text(json.dumps({"format": 9}))
    with pytest.raises(UserError, match="format 9"):
        read_summary(path)
    path.write_text("[")
    with pytest.raises(UserError, match="corrupt"):
        read_summary(path)


def test_calibrated_backbones_are_compared_by_their_weights_alone(config: EvalConfig, tmp_path: Path) -> None:
    given = Path(config.backbones[0])
    other = tmp_path / "other" / given.name
    other.parent.mkdir()
    card = given.with_name("backbone.json")
    (other.parent / card.name).write_bytes(card.read_bytes())
    weights = load_file(given)
    save_file({name: value + 1e3 if "running_mean" in name else value for name, value in weights.items()}, other)

    def votes(path: Path, calibrate: str) -> list[int]:
        out = str(tmp_path / f"{path.parent.name}-{calibrate}")
        own = replace(
            config, backbones=[str(path)], protocols=["knn"], random_baseline=False, recalibrate_bn=calibrate, out=out
        )
        evaluate(own, [])
        return read_results([out])[0].samples.predictions

    assert votes(given, "random") != votes(other, "random")
    assert votes(given, "all") == votes(other, "all")


def test_a_signed_url_leaves_no_signature(config: EvalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are in no file of the output or the report, nor on the terminal: as command, configuration, in errors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with served(Path(config.shards[0])) as server:
        url = f"{server.url.replace('//', '//al:hunter2@')}?X-Sig=dead,beef"
        words = [f"shards=['{url}']", f"backbones=[{config.backbones[0]}]", "protocols=[knn]", "random_baseline=false"]
        command = [sys.executable, str(ROOT / "launchers" / "evaluate.py"), *words, f"out={tmp_path / 'eval'}"]
        done = run(*command)
        assert done.returncode == 0, done.stderr
        monkeypatch.setattr(urls, "PAUSE", 0.0)
        server.fails["manifest.json"] = 1000
        failed = run(*command)
    assert failed.returncode == 1
    trained = tmp_path / "run"
    trained.mkdir()
    record_config(trained, PretrainConfig(data=DataConfig(shards=[url]), train=TrainConfig(run_dir=str(trained))))
    line = {"step": 10, "samples": 80, "epoch": 0.1, "lr": 0.1, "losses": {"total": 1.0}, "images_per_second": 1.0}
    (trained / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_report([trained], results=[tmp_path / "eval"], formats=["html", "json", "csv", "markdown"])
    kinds = (".json", ".html", ".csv", ".yaml", ".md")
    texts = [file.read_text() for file in tmp_path.rglob("*") if file.suffix in kinds]
    assert sum(server.url in text for text in texts) >= 3  # the locations are reported
    for text in (done.stdout, done.stderr, failed.stdout, failed.stderr, *texts):
        for secret in ("dead", "beef", "hunter2", "X-Sig"):
            assert secret not in text
