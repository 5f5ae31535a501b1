"""The benches work, and compare the same work. No test says anything about a time."""

import json
from pathlib import Path

import pytest
import torch
import typer
from distributed.runs import SETTINGS
from typer.testing import CliRunner

from simfle.bench import views as making
from simfle.bench.reference_model import ReferenceSimFLE
from simfle.bench.step import images, operations
from simfle.bench.timing import Timing, Variant, measure
from simfle.commands.bench.loader import bench_loader
from simfle.config.schema import PretrainConfig, ViewsConfig, load
from simfle.data.backends.opencv import OpenCV
from simfle.data.views import sample_view_params
from simfle.errors import UserError
from simfle.models.registry import build_method
from simfle.plan.hardware import load_constants

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def test_rounds_are_interleaved_after_a_warm_up() -> None:
    turns: list[str] = []
    ways = {name: Variant("", 10, lambda name=name: turns.append(name)) for name in "ab"}  # type: ignore[misc]
    found = measure(ways, 3, CPU)
    assert "".join(turns) == "ab" * 4
    assert [len(figures.seconds) for figures in found.values()] == [3, 3]
    with pytest.raises(UserError, match="rounds"):
        measure(ways, 0, CPU)


def test_rate_is_of_the_median_turn() -> None:
    plain = Timing("", 12, [1.0, 4.0, 2.0], [0.5, 1.0, 2.0]).as_dict()
    assert (plain["median"], plain["lowest"], plain["highest"], plain["per_cpu_second"]) == (6, 3, 12, 12)


def test_operations_of_a_product() -> None:
    matrix = torch.ones(8, 8)
    assert operations(lambda: matrix @ matrix) == 2 * 8**3


def test_plain_step_computes_the_same_method() -> None:
    """In float64, same weights, same images: the same loss, gradients and target. So both steps do the same work."""
    config = load(PretrainConfig, None, [*SETTINGS, "model.grouping_init=reference", "model.facemae.mask_ratio=0.75"])
    torch.manual_seed(0)
    ours = build_method(config.model, config.views).double().train()
    generator = torch.Generator().manual_seed(3)
    for parameter in ours.masking.grouping.parameters():  # apart: equal maps would be ranked by rounding
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    plain = ReferenceSimFLE(config.model, config.views).double().train()
    plain.load_state_dict(ours.state_dict())
    batch = images(config.views, 4, CPU)
    expected, found = ours(batch)["total"], plain(batch)
    expected.backward()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    wanted = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:  # what BatchNorm makes zero is rounding, in both
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-6, atol=1e-10 * largest, msg=name)
    with torch.no_grad():
        for model in (ours, plain):
            for parameter in model.online.parameters():
                parameter.add_(0.1)
    ours.on_step_end()
    plain.move_target()
    for target, wanted_target in zip(plain.target.parameters(), ours.target.parameters(), strict=True):
        torch.testing.assert_close(target, wanted_target)


def test_plain_views_are_the_same_views() -> None:
    """Without color, which ours composes in another way, both pipelines give the same pictures."""
    config = ViewsConfig(size=64, face_size=48, color_jitter_prob=0.0, grayscale_prob=0.5)
    data = making.read_images(None, 6)
    plain = making.reference_views(data, config)
    ours = OpenCV(config, 1).render(data, sample_view_params(0, 0, range(6), config))
    for number, mine in enumerate((ours.view1, ours.view2, ours.face)):
        apart = (torch.stack([views[number] for views in plain]).int() - mine.int()).abs().float()
        assert apart.mean() < 1.5  # gray levels


def test_loader_bench(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(bench_loader)
    out = tmp_path / "loader.json"
    words = ["views.size=32", "views.face_size=32", "train.device=cpu", "--images", "4", "--rounds", "1"]
    done = CliRunner().invoke(app, [*words, "--threads", "1", "--threads", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert {"plain", "opencv 1", "opencv 2", "dali 1", "dali 2", "apart 2", "decode 1", "copy"} <= set(result["ways"])
    assert all(way["median"] > 0 and len(way["seconds"]) == 1 for way in result["ways"].values())
    assert result["ways"]["apart 2"]["per_cpu_second"] is None
    assert "opencv 2" in done.output
    assert result["versions"]["torch"]
    assert load_constants([out])["loader.core"] == result["constants"]["loader.core"]


def test_folder_of_images_is_needed(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=str(folder)):
            making.read_images(folder, 3)
