"""Export: timm loads the files made from a run's newest complete checkpoint."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from helpers.eval_fixtures import MODEL
from safetensors.torch import load_file, save_file

import simfle
from simfle.commands import evaluate
from simfle.errors import UserError
from simfle.eval.backbones.load import load_backbone, random_backbone
from simfle.export.timm import export_backbones, exported_backbone, newest_checkpoint, read_backbones, read_newest
from simfle.models.backbone import build_backbone
from simfle.train.checkpointing import checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]


def make_checkpoint(
    run: Path, step: int, complete: bool = True, model: str = MODEL, side: int = 224
) -> dict[str, dict[str, torch.Tensor]]:
    """Write a checkpoint as training does; return the tensors of online and target."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    torch.manual_seed(step)
    networks = {name: dict(build_backbone(model, 0, side).state_dict()) for name in ("online", "target")}
    tensors = {f"{name}.backbone.{key}": value for name, state in networks.items() for key, value in state.items()}
    tensors["online.projector.0.weight"] = torch.ones(2, 2)
    tensors["facemae.encoder.weight"] = torch.ones(2)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
    if complete:
        (folder / "COMPLETE").touch()
    return networks


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"model": {"backbone": MODEL, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}, "views": {"size": 64}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_stands_for_its_backbone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """load_backbone, embed and evaluate export the run themselves."""
    networks = make_checkpoint(run, 3)
    weights = run / "export" / "online" / "backbone.safetensors"
    model = simfle.load_backbone(run)
    assert all(torch.equal(value, networks["online"][name]) for name, value in model.network.state_dict().items())
    assert weights.is_file()
    weights.unlink()
    with pytest.raises(UserError, match=r"benchmarks=\[\]: empty"):
        simfle.evaluate(str(run), out=run / "eval")
    assert weights.is_file()
    weights.unlink()
    monkeypatch.setattr(sys, "argv", ["evaluate", "--backbone", str(run), f"out={run}/eval"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "benchmarks=[]: empty" in capsys.readouterr().err
    assert weights.is_file()


def test_a_run_that_cannot_be_written(run: Path) -> None:
    make_checkpoint(run, 3)
    (run / "export").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*Fix: run simfle export .* --out FOLDER"):
        exported_backbone(run)


def test_both_networks_of_the_newest_complete_checkpoint(run: Path) -> None:
    make_checkpoint(run, 9)
    wanted = make_checkpoint(run, 120)
    make_checkpoint(run, 121, complete=False)
    written = export_backbones(run)
    assert written == {name: run / "export" / name / "backbone.safetensors" for name in ("online", "target")}
    for name, path in written.items():
        tensors = load_file(path)
        assert tensors.keys() == wanted[name].keys()
        assert all(torch.equal(value, wanted[name][key]) for key, value in tensors.items())
        timm.create_model(MODEL, num_classes=0).load_state_dict(tensors)  # strict
        card = load_backbone(path).card
        assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (card.name, card.network, card.size, card.mean) == (MODEL, name, 64, (0.5, 0.4, 0.3))
        assert card.run == {"folder": "run", "checkpoint": "step-00000120", "step": 120}
    init = {"source": "timm:resnet18", "sha256": "ab12", "loaded": 3, "wanted": 4}
    (run / "init.json").write_text(json.dumps(init | {"missing": 1}))
    assert load_backbone(export_backbones(run)["online"]).card.run["init"] == init


VITS = ("vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb", "vit_tiny_patch16_224")


@pytest.mark.parametrize("name", VITS)
def test_a_vit_is_exported_for_its_views(name: str, tmp_path: Path) -> None:
    """Also with register tokens, whose positions are those of the patches alone, and without any positions."""
    run, side = tmp_path / "run", 4 * int(name.split("patch")[1][:2])
    config = {"model": {"backbone": name, "mean": [0.5] * 3, "std": [0.2] * 3}, "views": {"size": side}}
    wanted = make_checkpoint(run, 3, model=name, side=side)["online"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    backbone = load_backbone(export_backbones(run)["online"])
    assert backbone.card.size == side
    found = backbone.module.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    maps = backbone.module.maps(torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8))
    assert maps.shape[2:] == (4, 4)


def test_a_config_that_says_otherwise_than_the_checkpoint_is_not_put_on_a_card(run: Path) -> None:
    tensors = make_checkpoint(run / "other", 2)["online"]
    named = {f"online.backbone.{key}": value.contiguous() for key, value in tensors.items()}
    trained = {"model.backbone": MODEL, "model.mean": [0.5, 0.5, 0.5], "optim.lr": 0.1}
    checkpoint.write(run, checkpoint.TrainState(2, 16, "config", "corpus", "sgd", identity=trained), named, {})
    with pytest.raises(UserError, match=r"model\.mean=\[0\.5, 0\.4, 0\.3\], but step-00000002 was trained with"):
        export_backbones(run)
    assert not (run / "export").exists()
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"model": {"backbone": MODEL,
        "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}))  # fmt: skip
    assert export_backbones(run)
    shutil.copytree(run / "checkpoints/step-00000002", run / "checkpoints/step-00000009")
    assert newest_checkpoint(run).name == "step-00000002"  # the copy is not a checkpoint of step 9


def test_a_smaller_stride_is_kept(run: Path) -> None:
    """timm's names and shapes are unchanged, so only the card can identify the network."""
    wanted = make_checkpoint(run, 9)["online"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["output_stride"] = 8
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    backbone = load_backbone(export_backbones(run)["online"])
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    maps = backbone.module.maps(images)
    assert maps.shape[2:] == (6, 6)
    network = build_backbone(MODEL, 8).eval()
    network.load_state_dict(wanted)
    assert torch.equal(maps, network((images / 255 - backbone.module.mean) / backbone.module.std))
    assert random_backbone(backbone.card, 0).module.maps(images).shape[2:] == (6, 6)


def test_torchvision_reads_a_resnet(run: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    tensors = build_backbone("resnet18").state_dict()
    missing, unexpected = resnet18().load_state_dict(tensors, strict=False)
    assert unexpected == []
    assert set(missing) == {"fc.weight", "fc.bias"}


def test_exporting_again_replaces_it(run: Path) -> None:
    make_checkpoint(run, 1)
    export_backbones(run)
    wanted = make_checkpoint(run, 2)
    path = export_backbones(run)["online"]
    assert torch.equal(load_file(path)["conv1.0.weight"], wanted["online"]["conv1.0.weight"])
    assert json.loads(path.with_name("backbone.json").read_text())["run"]["step"] == 2


def test_a_checkpoint_that_training_deletes_meanwhile(run: Path) -> None:
    """A checkpoint that disappears between selection and reading is replaced by a newer complete one."""
    make_checkpoint(run, 1)
    wanted = make_checkpoint(run, 2)
    new, aside = run / "checkpoints" / "step-00000002", run / "checkpoints" / ".new"
    new.rename(aside)
    chosen = []

    def read(newest: Path) -> dict[str, torch.Tensor]:
        chosen.append(newest.name)
        if aside.exists():
            shutil.rmtree(newest)
            aside.rename(new)
        return read_backbones(newest)["online"]

    newest, found = read_newest(run, read)
    assert (newest, chosen) == (new, ["step-00000001", "step-00000002"])
    assert torch.equal(found["conv1.0.weight"], wanted["online"]["conv1.0.weight"])


def test_errors(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        newest_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no complete checkpoint yet \(0 incomplete\)"):
        export_backbones(run)
    make_checkpoint(run, 5, complete=False)
    with pytest.raises(UserError, match=r"no complete checkpoint yet \(1 incomplete\)"):
        export_backbones(run)
    make_checkpoint(run, 6)
    shutil.copy(run / "config.yaml", tmp_path / "kept")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(MODEL, "resnet18"))
    with pytest.raises(UserError, match="holds no online resnet18"):
        export_backbones(run)
    assert not (run / "export").exists()
    (run / "config.yaml").write_text("model: 3")
    with pytest.raises(UserError, match=r"config\.yaml is corrupt"):
        export_backbones(run)
    shutil.copy(tmp_path / "kept", run / "config.yaml")
    (run / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"12345678nonsense")
    with pytest.raises(UserError, match="cannot read"):
        export_backbones(run)


def test_command(run: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools/export_backbone.py")]
    failed = subprocess.run([*tool, str(run)], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: export: ")
    assert failed.stderr.count("\n") == 1
    make_checkpoint(run, 3)
    done = subprocess.run([*tool, str(run), "--out", str(run / "out")], capture_output=True, text=True, check=True)
    assert "target/backbone.safetensors" in done.stdout.replace("\n", "")
    assert (run / "out" / "online" / "backbone.json").is_file()
