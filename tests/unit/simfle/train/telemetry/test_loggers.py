"""W&B and MLflow, the real libraries without a network: a resume continues, no secret is written, no failure stops."""

import importlib.metadata
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed.runs import SETTINGS, losses, metrics
from helpers.wandb_files import history, records

from simfle.config.schema import DataConfig, PretrainConfig, TrainConfig, load
from simfle.errors import RunStopped, UserError
from simfle.train.preflight import check
from simfle.train.pretrain import pretrain
from simfle.train.telemetry import loggers
from simfle.train.telemetry.loggers import LoggerThread, MlflowService, RunIds, RunLoggers, WandbService

pytestmark = pytest.mark.slow

SECRET = "hunter2"
LEAKY = f"https://al:{SECRET}@store.example/faces?sig={SECRET}"
PLACES = {"WANDB_MODE", "WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"}
KEY = f"{SECRET}{'0' * 33}"  # 40 characters, as W&B's keys have


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """No network, and secrets wherever the libraries look for facts about a process."""
    for name in ("wandb", "mlflow"):
        pytest.importorskip(name, reason=f"not installed: pip install 'simfle[{name}]'")
    with pytest.MonkeyPatch.context() as patch:
        for name in PLACES:
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
        patch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({"mlflow.source.git.repoURL": LEAKY}))
        patch.setattr(sys, "argv", ["simfle", f"data.shards=[{LEAKY}]"])
        patch.setattr(loggers, "CLOSE_SECONDS", 300.0)  # a loaded machine takes longer to create a database
        yield


@dataclass(frozen=True)
class Resumed:
    """A run that was stopped after step 3, resumed from its checkpoint of step 2, and ended at step 4."""

    run: Path
    plain: Path
    status: str  # MLflow's, after the stop


def train(faces: Path, run: Path, *settings: str) -> None:
    places = [f"data.shards=[{faces}]", f"train.run_dir={run}", "train.steps=4", f"monitor.shards=['{LEAKY}']"]
    pretrain(load(PretrainConfig, None, [*SETTINGS, *places, *settings]))


def mlflow_run(run: Path) -> tuple[Any, Any]:
    """Return the client of RUN/mlflow, and its only run."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'simfle'")
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


@pytest.fixture(scope="module")
def resumed(offline: None, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    folder = tmp_path_factory.mktemp("loggers")
    plain, run = folder / "plain", folder / "run #1"
    train(faces, plain)
    before = dict(os.environ)
    logged = ("train.loggers=[wandb,mlflow]", "train.checkpoint_every=2")
    with pytest.raises(RunStopped):
        train(faces, run, *logged, "train.stop_after_step=3")
    status = mlflow_run(run)[1].info.status
    shutil.rmtree(run / "checkpoints" / "step-00000003")
    train(faces, run, *logged, "train.keep_checkpoints=3")
    assert dict(os.environ) == before
    return Resumed(run, plain, status)


def test_losses_are_those_of_a_run_without_loggers(resumed: Resumed) -> None:
    assert [line["step"] for line in metrics(resumed.run)] == [1, 2, 3, 4]
    assert losses(resumed.run) == losses(resumed.plain)


def test_wandb_continues_one_run_and_repeats_steps(resumed: Resumed) -> None:
    files = sorted(resumed.run.glob("wandb/offline-run-*/*.wandb"))
    starts = [{record.WhichOneof("record_type"): record for record in records(file)} for file in files]
    known = json.loads((resumed.run / "loggers.json").read_text())
    assert {start["run"].run.run_id for start in starts} == {known["wandb"]["id"]}
    assert {(start["run"].run.project, start["run"].run.display_name) for start in starts} == {("simfle", "run #1")}
    assert [start["exit"].exit.exit_code for start in starts] == [1, 0]  # stopped, complete
    first, second = (history(file) for file in files)
    assert [[point["step"] for point in points] for points in (first, second)] == [[1, 2, 3], [3, 4]]
    expected = [each["total"] for each in losses(resumed.plain)]
    assert [point["losses/total"] for point in first + second] == [*expected[:3], *expected[2:]]
    steps = [record.metric for record in records(files[0]) if record.WhichOneof("record_type") == "metric"]
    assert [each.step_metric for each in steps if each.glob_name == "*"] == ["step"]
    config = {item.key: json.loads(item.value_json) for item in starts[0]["run"].run.config.update}
    assert config["train"]["steps"] == 4
    assert config["monitor"]["shards"] == ["https://store.example/faces"]


def test_mlflow_continues_one_run_and_repeats_steps(resumed: Resumed) -> None:
    client, found = mlflow_run(resumed.run)
    assert (resumed.status, found.info.status) == ("KILLED", "FINISHED")
    assert found.info.run_name == "run #1"
    points = client.get_metric_history(found.info.run_id, "losses/total")
    expected = [each["total"] for each in losses(resumed.plain)]
    assert sorted((point.step, point.value) for point in points) == list(
        zip([1, 2, 3, 3, 4], [*expected[:3], *expected[2:]], strict=True)
    )
    assert found.data.params["train.steps"] == "4"
    assert found.data.params["train.keep_checkpoints"] == "2"  # of the first start
    assert found.data.tags["mlflow.source.git.repoURL"] == "https://store.example/faces"


def test_no_file_of_the_run_has_a_secret(resumed: Resumed) -> None:
    files = {file: file.read_bytes() for file in resumed.run.rglob("*") if file.is_file()}
    assert any(b"store.example" in content for file, content in files.items() if file.suffix == ".wandb")
    assert any(b"store.example" in content for file, content in files.items() if file.suffix == ".db")
    assert [file for file, content in files.items() if SECRET.encode() in content] == []


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return our warnings; the libraries log, too."""
    ours = [record for record in caplog.records if record.name == loggers.__name__]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():  # the test's own timeout ends it
        time.sleep(0.02)


def test_services_that_do_not_answer_do_not_stop_a_run(
    resumed: Resumed, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://al:{SECRET}@127.0.0.1:9")
    monkeypatch.setattr(loggers, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(loggers, "CLOSE_SECONDS", 20.0)
    train(faces, tmp_path / "run", "train.loggers=[wandb,mlflow]")
    assert losses(tmp_path / "run") == losses(resumed.plain)
    told = warned(caplog)
    assert len(told) == 2, told
    for name in ("wandb", "mlflow"):
        assert any(f"train.loggers=[{name}]: " in line and "training continues" in line for line in told)
    written = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]
    assert not [line for line in told if SECRET in line]


def test_points_wait_for_a_service_that_comes_back(
    resumed: Resumed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "RETRY_SECONDS", 0.05)
    (tmp_path / "mlflow").write_text("in the way")
    service = MlflowService(PretrainConfig(train=TrainConfig(run_dir=str(tmp_path))), RunIds(tmp_path / "loggers.json"))
    thread = LoggerThread("mlflow", service)
    for step in (10, 20):
        thread.log(step, {"losses/total": step / 4})
    wait_for(lambda: warned(caplog))
    (tmp_path / "mlflow").unlink()
    shutil.copytree(resumed.run / "mlflow", tmp_path / "mlflow")
    wait_for((tmp_path / "loggers.json").exists)
    thread.end(complete=True)
    thread.join(300)
    assert len(warned(caplog)) == 1
    run_id = json.loads((tmp_path / "loggers.json").read_text())["mlflow"]["run_id"]
    from mlflow import MlflowClient

    points = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}").get_metric_history(run_id, "losses/total")
    assert [(point.step, point.value) for point in points] == [(10, 2.5), (20, 5.0)]


def test_wandb_without_a_key_asks_nobody(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))  # a key in ~/.netrc
    own, terminal = os.openpty()  # in which it could ask
    with Path(os.ttyname(terminal)).open() as keys, Path(os.ttyname(terminal)).open("w") as screen:
        monkeypatch.setattr(sys, "stdin", keys)
        monkeypatch.setattr(sys, "stderr", screen)
        opened = RunLoggers(PretrainConfig(train=TrainConfig(run_dir=str(tmp_path), loggers=["wandb"])))
        opened.log(1, {"lr": 0.1})
        wait_for(lambda: warned(caplog))
        opened.close(complete=False)
    os.close(own)
    os.close(terminal)
    (told,) = warned(caplog)
    assert "No API key" in told
    assert "run wandb login" in told


def test_wandb_starts_again_after_its_process_was_killed(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "RETRY_SECONDS", 0.05)  # if it was killed before it had started the run
    config = PretrainConfig(train=TrainConfig(run_dir=str(tmp_path)))
    thread = LoggerThread("wandb", WandbService(config, RunIds(tmp_path / "loggers.json")))
    wait_for(lambda: list(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    (core,) = [each for each in psutil.Process().children() if each.name() == "wandb-core"]
    core.send_signal(signal.SIGUSR2)  # as Slurm does with all processes of a job
    pending = int(re.findall(r"ShdPnd:\s*(\w+)", Path(f"/proc/{core.pid}/status").read_text())[0], 16)
    assert pending & 1 << signal.SIGUSR2 - 1  # it is blocked
    core.kill()
    wait_for(lambda: thread.log(2, {"lr": 0.5}) or len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) > 1)
    thread.log(3, {"lr": 0.25})
    thread.end(complete=True)
    thread.join(300)
    *_, last = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert history(last)[-1]["step"] == 3
    assert [record.exit.exit_code for record in records(last) if record.WhichOneof("record_type") == "exit"] == [0]


def test_a_missing_package_is_refused_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loggers.PACKAGES, "wandb", ("simfle-has-no-such-package",))
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("simfle-has-no-such-package")
    config = PretrainConfig(data=DataConfig(shards=["faces"]))
    check(config)
    with pytest.raises(UserError, match=r"train.loggers=\[wandb\]: not installed. Fix: pip install 'simfle\[wandb\]'."):
        check(replace(config, train=TrainConfig(loggers=["wandb"])))


@pytest.mark.parametrize("wrong", [["tensorboard"], ["mlflow", "mlflow"]])
def test_unknown_and_repeated_loggers_are_refused(wrong: list[str]) -> None:
    with pytest.raises(UserError, match=r"train.loggers=.*: must be distinct texts, each wandb or mlflow"):
        check(PretrainConfig(data=DataConfig(shards=["faces"]), train=TrainConfig(loggers=wrong)))
