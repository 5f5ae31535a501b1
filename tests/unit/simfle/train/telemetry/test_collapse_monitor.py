"""Telemetry sees features as they are, changes nothing that is trained, and says when they collapse."""

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers.report_fixtures import make_run, metrics_line
from helpers.tiny_methods import NAMES, VIEWS, batch, config
from torch import Tensor

from simfle.commands.watch import facts
from simfle.models import collapse_metrics
from simfle.models.base import Method
from simfle.models.registry import build_method
from simfle.report.load_runs import read_runs
from simfle.report.report import Content, Extras, render
from simfle.report.tables import tables
from simfle.runtime import run_files
from simfle.runtime.distributed import World
from simfle.slurm.status import status
from simfle.train.telemetry.collapse_monitor import FeatureTelemetry

pytestmark = pytest.mark.slow

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def build(method: str) -> Method:
    torch.manual_seed(0)
    return build_method(config(method), VIEWS).train()


def step(model: Method) -> dict[str, Tensor]:
    """Losses, gradients and buffers of one step."""
    losses = model(batch())
    losses["total"].backward()
    model.on_step_end(0.5)
    gradients = {f"gradient {name}": each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {**losses, **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("method", NAMES)
def test_a_step_is_the_same_bit_for_bit_while_features_are_measured(method: str, tmp_path: Path) -> None:
    plain, watched = build(method), build(method)
    telemetry = FeatureTelemetry(tmp_path, watched, ALONE, 0)
    telemetry.begin(True)
    random = torch.get_rng_state()
    with_telemetry = step(watched)
    measures = telemetry.measure(1)
    assert torch.equal(torch.get_rng_state(), random)
    without = step(plain)
    assert with_telemetry.keys() == without.keys()
    assert all(torch.equal(value, without[name]) for name, value in with_telemetry.items())
    assert {"features"} <= measures.keys() <= {"features", "projection", "face", "transformer"}
    assert ("face" in measures) == (method == "simfle")
    assert not watched.recorded_features
    assert not watched.record_enabled


def test_it_measures_the_backbones_features_of_all_micro_batches(tmp_path: Path) -> None:
    model = build("simclr")
    telemetry = FeatureTelemetry(tmp_path, model, ALONE, 0)
    telemetry.begin(True)
    pooled = []
    hook = model.online.backbone.register_forward_hook(lambda *found: pooled.append(found[2].mean((2, 3)).detach()))  # type: ignore[union-attr, operator]
    for seed in (0, 1):
        model(batch(seed=seed))
    hook.remove()
    found = telemetry.measure(1)["features"]
    first, second = torch.cat(pooled[::2]), torch.cat(pooled[1::2])
    assert found["rank"] == pytest.approx(float(collapse_metrics.effective_rank(first)), rel=1e-5)
    assert found["alignment"] == pytest.approx(float(collapse_metrics.alignment(first, second)), rel=1e-5)
    assert (found["samples"], found["dimensions"]) == (16, 96)
    telemetry.begin(False)
    model(batch())
    assert not model.recorded_features


def test_the_random_network_is_the_first_step_also_after_a_resume(tmp_path: Path) -> None:
    model = build("byol")
    measured = []
    for number, first in ((1, 0), (8, 7)):
        telemetry = FeatureTelemetry(tmp_path, model, ALONE, first)
        telemetry.begin(True)
        step(model)
        measured.append(telemetry.measure(number)["features"])
    assert measured[0]["random_rank"] == measured[0]["rank"] == measured[1]["random_rank"]
    (tmp_path / "initial.json").write_text('{"features": [1')
    telemetry = FeatureTelemetry(tmp_path, model, ALONE, 7)
    telemetry.begin(True)
    step(model)
    assert "random_rank" not in telemetry.measure(8)["features"]  # unknown, and no reason to end a run


def test_a_lasting_low_rank_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("byol")
    telemetry = FeatureTelemetry(tmp_path, model, ALONE, 0)
    line = torch.linspace(1, 2, 16)[:, None] * torch.ones(96)
    with caplog.at_level(logging.WARNING):
        for number in range(1, 9):
            telemetry.begin(True)
            spread = torch.randn(16, 96, generator=torch.Generator().manual_seed(0))
            model.record_features(features=(spread if number == 1 else line + 1e-3 * spread,))
            telemetry.measure(number)
            assert len(caplog.records) == (number >= 4)
    text = caplog.records[0].getMessage()
    assert "of 96 dimensions" in text
    assert "Fix: " in text
    assert run_files.COLLAPSE_PAGE in text


def test_what_is_not_finite_is_not_measured(tmp_path: Path) -> None:
    model = build("byol")
    telemetry = FeatureTelemetry(tmp_path, model, ALONE, 0)
    telemetry.begin(True)
    model.record_features(features=(torch.full((8, 4), float("nan")),))
    assert telemetry.measure(1) == {}


def test_watch_and_report_show_the_rank_beside_a_random_network(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    measures = {
        "features": {"rank": 2.7, "random_rank": 8.5, "dimensions": 512, "spread": 0.2, "uniformity": -1.0},
        "monitor": {"knn": 0.42, "linear": 0.49},
    }
    lines = [metrics_line(number) | measures for number in (10, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = dict(facts(status(run)))
    assert shown["features"] == "rank 2.7, random network 8.5; features collapse, see docs/collapse.md"
    assert shown["monitor"] == "knn 0.42, linear 0.49"
    (run / "init.json").write_text("{}")
    assert dict(facts(status(run)))["features"].startswith("rank 2.7, at the start 8.5; features collapse")
    (run / "init.json").unlink()
    page = render(Content(read_runs([run]), tables([], 5), [], Extras()))
    assert 'id="features"' in page
    assert "effective rank of the features over 20 steps: run ends at 2.7; run, random weights ends at 8.5" in page
    assert "linear probe accuracy, % over 160 images: run ends at 49" in page


@pytest.mark.parametrize("table", [3, {"rank": "high"}, {"rank": None}])
def test_a_line_whose_table_holds_no_numbers_is_passed_over(table: object) -> None:
    assert run_files.parse_metrics(json.dumps(metrics_line(1) | {"features": table})) == []
