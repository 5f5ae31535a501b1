"""Probes while a run trains: they tell what features know, and change nothing of what is trained."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distributed.runs import finish, metrics
from helpers.tiny_methods import VIEWS, config
from safetensors.torch import load_file

from simfle.config.schema import MonitorConfig, PretrainConfig
from simfle.models.registry import build_method
from simfle.runtime.distributed import World
from simfle.train.telemetry.probe_monitor import Monitor, accuracies

pytestmark = pytest.mark.slow

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
STEPS = ("train.steps=4", "train.checkpoint_every=100", "train.log_every=4")


def test_probes_tell_clusters_apart_and_guess_where_there_are_none() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, wanted = torch.arange(300) % 3, torch.arange(90) % 3
    centers = 20 * torch.eye(3, 8)
    noise, other = torch.randn(300, 8, generator=generator), torch.randn(90, 8, generator=generator)
    assert accuracies(centers[labels] + noise, labels, centers[wanted] + other, wanted) == (1.0, 1.0)
    assert all(found < 0.6 for found in accuracies(noise, labels, other, wanted))


def test_a_run_with_probes_trains_the_same_bit_for_bit(faces: Path, tmp_path: Path) -> None:
    """Two processes, parameters in partitions (stage 3), stopped and started again."""
    probed, plain = tmp_path / "probed", tmp_path / "plain"
    probes = (f"monitor.shards=[{faces}]", "monitor.val_split=test", "monitor.probe_every=2", "monitor.fit_samples=100")
    finish(2, faces, probed, *STEPS, *probes, "train.zero_stage=3", "train.stop_after_step=3")
    finish(2, faces, probed, *STEPS, *probes, "train.zero_stage=3")
    finish(2, faces, plain, *STEPS, "train.zero_stage=3")
    lines = {line["step"]: line for line in metrics(probed)}
    assert sorted(lines) == [2, 4]
    for line in lines.values():
        assert line["monitor"].keys() == {f"{of}{name}" for of in ("", "random_") for name in ("linear", "knn", "rank")}
    assert lines[2]["monitor"]["random_knn"] == lines[4]["monitor"]["random_knn"]  # also after the second start
    assert lines[4]["losses"] == metrics(plain)[-1]["losses"]
    found, wanted = (load_file(run / "checkpoints/step-00000004/model.safetensors") for run in (probed, plain))
    assert all(torch.equal(value, found[name]) for name, value in wanted.items() if "running_" not in name)


@pytest.fixture
def monitor(faces: Path, tmp_path: Path) -> Iterator[Monitor]:
    """A monitor on separate shards, in a process group of one."""
    shards = shutil.copytree(faces, tmp_path / "shards")
    settings = MonitorConfig(shards=[str(shards)], probe_every=1, val_split="test", fit_samples=100)
    run = PretrainConfig(model=config("byol"), views=VIEWS, monitor=settings)
    run = replace(run, train=replace(run.train, run_dir=str(tmp_path)))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield Monitor(run, ALONE, 10, lambda: None)
    finally:
        torch.distributed.destroy_process_group()


def test_a_copy_is_measured_and_nothing_is_drawn(monitor: Monitor) -> None:
    engine = SimpleNamespace(module=build_method(monitor.config.model, VIEWS).train())
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}
    random = torch.get_rng_state()
    found = monitor.measure(engine)
    assert found.keys() == {"linear", "knn", "rank"}
    assert torch.equal(torch.get_rng_state(), random)
    assert engine.module.online.backbone.training  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in engine.module.state_dict().items())


def test_what_takes_too_long_or_cannot_be_read_is_left_out(
    monitor: Monitor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other processes wait and are not involved, so the run must continue."""
    engine = SimpleNamespace(module=build_method(monitor.config.model, VIEWS).train())
    monitor.settings = replace(monitor.settings, max_seconds=0.0)
    with caplog.at_level(logging.WARNING):
        assert monitor.measure(engine) == {}
        assert "Fix: set monitor.fit_samples=50" in caplog.text
        monitor.settings = replace(monitor.settings, max_seconds=100.0)
        for tar in (tmp_path / "shards").rglob("*.tar"):
            with tar.open("r+b") as file:  # in place: it is mapped
                file.write(bytes(tar.stat().st_size))
        assert monitor.measure(engine) == {}
    assert "cannot be decoded" in caplog.text
    assert "the run continues" in caplog.text


def test_shards_without_the_split_are_refused_in_a_line(faces: Path, tmp_path: Path) -> None:
    probes = (f"monitor.shards=[{faces}]", "monitor.probe_every=2", "monitor.val_split=none")
    said = finish(1, faces, tmp_path / "run", *STEPS, *probes, code=1)
    assert "Traceback" not in said
    assert "error: monitor.shards: " in said
    assert "no split 'none'" in said
    assert "Fix: " in said
