"""The comparison with peers: the same work, whole commands, the table. Without the peers, what needs none of them."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from simfle.bench import peers, views
from simfle.bench.peers import LIGHTLY_TRAIN, OURS, OURS_FP32, CommandUse, command_lines, markdown, rows
from simfle.bench.timing import Timing
from simfle.config.schema import PretrainConfig, load
from simfle.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")
WORDS = ["model.method=simclr", "model.backbone=resnet18", "views.size=32", "model.head_hidden_dim=16",
         "model.head_out_dim=8", "train.device=cpu"]  # fmt: skip
CONFIG = load(PretrainConfig, None, WORDS)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in peers.OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("faces") / "images"
    peers.write_images(views.read_images(None, 4), found)
    return found


def test_other_methods_and_missing_peers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model\.method=simfle: peers have other settings"):
        peers.check(load(PretrainConfig, None, []))
    monkeypatch.setattr(peers, "is_installed", lambda _: False)
    with pytest.raises(UserError, match=r"pip install 'simfle\[peers\]'"):
        peers.check(CONFIG)


def test_our_whole_command_makes_a_backbone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lines = command_lines(folder, CONFIG, WORDS, 2, tmp_path / "out")
    for line in lines[OURS_FP32]:
        subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    assert "train.steps=2" in lines[OURS_FP32][1]
    assert list((tmp_path / "out" / f"{OURS_FP32}-run").glob("**/backbone.safetensors"))
    assert [word for word in lines[OURS][1] if word.startswith("train.precision")] == ["train.precision=bf16"]


def test_our_loader_makes_two_views_of_every_image(folder: Path) -> None:
    images = views.read_images(folder, 4)
    found = peers.loader_variants(images, folder, CONFIG, 2, 1, CPU)
    assert found[OURS].items == 4
    for way in found.values():
        way.run()


def test_the_table_has_a_row_for_each_measure_and_a_dash_without_one() -> None:
    timing = Timing("", 8, [1.0], [2.0])
    use = CommandUse("", 0.0, [3.0, 5.0], [4.0, 6.0], [10**6, 3 * 10**6])
    found = dict(rows({OURS: timing}, {}, {OURS: use, LIGHTLY_TRAIN: use}, CPU))
    assert found["loader, two views, images per CPU second"] == {OURS: 4.0}
    assert found["whole command, CPU s"][LIGHTLY_TRAIN] == 5.0
    assert found["whole command, peak resident MB"][OURS] == 3.0
    assert use.as_dict()["peak_bytes"] == [10**6, 3 * 10**6]
    lines = markdown(list(found.items())).splitlines()
    assert lines[0] == "| | ours | lightly-train |"
    assert lines[2] == "| loader, two views, images per CPU second | 4 | - |"
    assert not any(line.startswith("| step") for line in lines)
    on_gpu = dict(rows({}, {OURS: timing}, {}, torch.device("cuda")))
    assert on_gpu["step, images/s"] == {OURS: 8.0}


@pytest.mark.parametrize("method", peers.METHODS)
def test_lightlys_step_computes_the_same_loss(method: str) -> None:
    """With the same weights, in float64: so both do the same work."""
    pytest.importorskip("lightly")
    from simfle.bench.step import images
    from simfle.models.registry import build_method

    config = load(PretrainConfig, None, [*WORDS, f"model.method={method}"])
    ours = build_method(config.model, config.views).double().train()
    theirs = {"simclr": peers.LightlySimCLR, "byol": peers.LightlyBYOL}[method](config.model).double().train()
    # A bias before BatchNorm changes nothing: lightly leaves it out.
    weights = [each for name, each in ours.named_parameters() if not name.endswith("net.0.bias")]
    assert [each.shape for each in theirs.parameters()] == [each.shape for each in weights]
    for mine, other in zip(weights, theirs.parameters(), strict=True):
        other.data.copy_(mine.data)
    batch = images(config.views, 4, CPU)
    expected = ours(batch)["total"]
    found = theirs(ours.normalize(batch.view1), ours.normalize(batch.view2))
    if method == "byol":  # lightly: minus cosine, halved; ours: 2 - 2 cosine, summed
        found = 4 + 4 * found
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_lightly_train_takes_our_settings(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightly_train")
    line = command_lines(folder, CONFIG, WORDS, 2, tmp_path)[LIGHTLY_TRAIN][0]
    assert json.loads(line[-1])["transform_args"]["image_size"] == [32, 32]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / LIGHTLY_TRAIN).glob("exported_models/*.pt"))
