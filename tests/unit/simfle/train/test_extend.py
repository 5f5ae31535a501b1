"""A run that is extended: longer schedules from there on, exact after kills, and refused where it is not meant."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed.launch import ROOT, environment

from simfle.config.schema import DataConfig, PretrainConfig, TrainConfig, config_digest, run_identity
from simfle.errors import UserError
from simfle.optim import lr_at_step
from simfle.train import extend
from simfle.train.checkpointing.checkpoint import TrainState, write
from simfle.train.run_dir import check_same_config

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[3] / "helpers" / "run_sequence.py"
OLD = PretrainConfig(data=DataConfig(shards=["faces"]), train=TrainConfig(steps=4))


def longer(steps: int, **changes: object) -> PretrainConfig:
    return replace(OLD, train=replace(OLD.train, steps=steps, **changes))  # type: ignore[arg-type]


def lengths(steps: int) -> dict[str, float]:
    return {"train.steps": steps, "train.epochs": 100.0}


def save(run: Path, step: int, config: PretrainConfig) -> None:
    write(run, TrainState(step, step, config_digest(config), "corpus", "sgd", identity=run_identity(config)), {}, {})


def note(run: Path, *changes: tuple[int, int, int]) -> None:
    made = [extend.Extension(at, old, new, lengths(old), lengths(new), 0.0, 0.1, 0.0) for at, old, new in changes]
    (run / extend.FILE).write_text("".join(json.dumps(each.__dict__) + "\n" for each in made))


def test_a_greater_length_is_refused_with_the_way_to_allow_it(tmp_path: Path) -> None:
    save(tmp_path, 4, OLD)
    with pytest.raises(
        UserError, match=r"\(train\.steps: 4 -> 8\)\. Fix: use the old .*, or add train\.extend=true to train longer$"
    ):
        check_same_config(tmp_path, longer(8))
    check_same_config(tmp_path, longer(8, extend=True))


def test_train_extend_allows_no_other_change(tmp_path: Path) -> None:
    save(tmp_path, 4, OLD)
    with pytest.raises(UserError, match=r"\(train\.seed: 0 -> 1; train\.steps: 4 -> 8\)") as error:
        check_same_config(tmp_path, longer(8, extend=True, seed=1))
    assert "train.extend" not in str(error.value)


def test_checkpoints_of_each_length_of_an_extended_run_belong_to_it(tmp_path: Path) -> None:
    save(tmp_path, 4, OLD)
    note(tmp_path, (4, 4, 8))
    check_same_config(tmp_path, longer(8))  # killed before its first checkpoint of the new length
    save(tmp_path, 6, longer(8))
    check_same_config(tmp_path, longer(8))
    check_same_config(tmp_path, longer(12, extend=True))
    with pytest.raises(UserError, match=r"extended to 8 steps \(train\.steps: 8 -> 4\)\. Fix: set train\.steps=8, or"):
        check_same_config(tmp_path, OLD)
    save(tmp_path, 7, longer(9))  # copied from another run
    with pytest.raises(UserError, match=r"step-00000007 is of a run with another configuration"):
        check_same_config(tmp_path, longer(8))


def test_the_schedule_of_a_step_is_that_of_the_length_at_this_step(tmp_path: Path) -> None:
    note(tmp_path, (4, 4, 8), (6, 8, 12))
    known = extend.read(tmp_path)
    assert [extend.steps_at(step, 12, known) for step in range(8)] == [4, 4, 4, 4, 8, 8, 12, 12]
    assert extend.steps_at(0, 5, []) == 5


def test_invalid_lines_are_skipped(tmp_path: Path) -> None:
    assert extend.read(tmp_path) == []
    note(tmp_path, (4, 4, 8))
    whole = (tmp_path / extend.FILE).read_text()
    (tmp_path / extend.FILE).write_text('{"step": 1}\n' + whole + whole[:30])
    assert [each.new_steps for each in extend.read(tmp_path)] == [8]


def test_the_change_of_the_schedules_is_described() -> None:
    made = extend.Extension(4, 4, 8, {}, {}, 0.0, 0.025, 0.0)
    assert extend.describe(made, OLD.model) == (
        "train.extend: 4 -> 8 steps; from step 5 on the schedules follow the new length: learning rate 0 -> 0.025"
    )
    cosine = replace(OLD, model=replace(OLD.model, ema_schedule="cosine"))
    assert extend.describe(made, cosine.model).endswith(", EMA momentum 1 -> 0.996913")


BASE = ("model.method=byol", "model.ema_schedule=cosine", "train.checkpoint_every=2", "train.keep_checkpoints=9")
SEQUENCE: list[list[str]] = [
    ["run", "plain", *BASE, "train.steps=4"],  # 0
    ["copy", "plain", "whole"],
    ["copy", "plain", "parts"],
    ["copy", "plain", "early"],
    ["remove", "early/checkpoints/step-00000004"],
    ["run", "plain", *BASE, "train.steps=8"],  # 5: refused
    ["run", "whole", *BASE, "train.steps=8", "train.extend=true"],
    ["run", "parts", *BASE, "train.steps=8", "train.extend=true", "train.stop_after_step=6"],
    ["run", "parts", *BASE, "train.steps=8"],  # 8: resumed without the request
    ["run", "parts", *BASE, "train.steps=4"],  # 9: refused
    ["run", "parts", *BASE, "train.steps=6", "train.extend=true"],  # 10: refused
    ["copy", "whole", "again"],
    ["remove", "again/checkpoints/step-00000004"],
    ["remove", "again/checkpoints/step-00000006"],
    ["remove", "again/checkpoints/step-00000008"],
    ["run", "again", *BASE, "train.steps=8"],  # 15: from step 2, before the extension
    ["run", "early", *BASE, "train.steps=8", "train.extend=true"],  # 16: an unfinished run
]


@pytest.fixture(scope="module")
def out(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    command = [sys.executable, str(SCRIPT), str(faces), str(folder), json.dumps(SEQUENCE)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def metrics(run: Path) -> list[tuple[int, float, dict[str, float]]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["lr"], line["losses"]) for line in lines]


@pytest.mark.slow
def test_an_extended_run_is_equal_bit_for_bit_however_it_is_interrupted(out: Path) -> None:
    whole = metrics(out / "whole")
    assert [step for step, _, _ in whole] == list(range(1, 9))
    assert whole[:4] == metrics(out / "plain")
    assert metrics(out / "parts") == whole
    assert metrics(out / "again") == whole
    newest = "checkpoints/step-00000008/model.safetensors"
    contents = {(out / run / newest).read_bytes() for run in ("whole", "parts", "again")}
    assert len(contents) == 1


@pytest.mark.slow
def test_the_schedules_follow_the_new_length_from_the_extension_on(out: Path) -> None:
    optim = replace(OLD.optim, name="adamw", lr=0.1)
    rates = [lr for _, lr, _ in metrics(out / "whole")]
    assert rates == [lr_at_step(step, 4 if step < 4 else 8, 16, optim) for step in range(8)]
    early = [lr for _, lr, _ in metrics(out / "early")]
    assert early == [lr_at_step(step, 4 if step < 2 else 8, 16, optim) for step in range(8)]
    assert [(each.step, each.old_steps, each.new_steps) for each in extend.read(out / "early")] == [(2, 4, 8)]


@pytest.mark.slow
def test_an_extension_is_printed_once_and_recorded(out: Path) -> None:
    printed = [(out / f"{number}.txt").read_text() for number in (6, 7, 8)]
    assert [text.count("train.extend: 4 -> 8 steps; from step 5 on") for text in printed] == [1, 1, 0]
    for run in ("whole", "parts"):
        (made,) = extend.read(out / run)
        assert (made.step, made.old_steps, made.new_steps) == (4, 4, 8)
        assert (made.old["train.steps"], made.new["train.steps"]) == (4, 8)
        assert json.loads((out / run / "run.json").read_text())["steps"] == 8
    assert "(train.steps: 4 -> 8). Fix: use the old values" in (out / "5.txt").read_text()
    assert "the run was extended to 8 steps" in (out / "9.txt").read_text()
    assert "the run has 8 steps, the new length is 6. Fix: set train.steps above 8" in (out / "10.txt").read_text()
    assert torch.isfinite(torch.tensor([loss["total"] for _, _, loss in metrics(out / "early")])).all()
