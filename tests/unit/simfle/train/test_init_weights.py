"""Weights to start from: found in each kind of file, reported, recorded, and not read again on resume."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from distributed import runs
from distributed.launch import ROOT, environment
from helpers.tiny_methods import VIEWS, config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shards.io.hashing import hash_file
from simfle.config.parsing import absolute_source
from simfle.config.schema import DataConfig, PretrainConfig, TrainConfig, config_digest, run_identity
from simfle.errors import UserError
from simfle.eval.backbones.external import open_backbone
from simfle.eval.backbones.load import BackboneMetadata
from simfle.models.backbone import build_backbone
from simfle.models.base import Method
from simfle.models.registry import build_method
from simfle.runtime.distributed import World
from simfle.train import init_weights
from simfle.train.checkpointing.checkpoint import TrainState, write
from simfle.train.init_source import check_place, read
from simfle.train.init_weights import Loaded, fill

pytestmark = pytest.mark.slow

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
BACKBONE = "test_resnet"
SCRIPT = Path(__file__).parents[3] / "helpers" / "run_sequence.py"
State = dict[str, Tensor]


def pretraining(source: object, method: str = "byol", **changes: object) -> PretrainConfig:
    model = config(method, init=str(source), **changes)
    return PretrainConfig(data=DataConfig(shards=["x"]), model=model, views=VIEWS)


def build(chosen: PretrainConfig, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return build_method(chosen.model, chosen.views)


def start(source: object, method: str = "byol", **changes: object) -> tuple[Method, Loaded]:
    """Build a model and fill it from a source, as a run does."""
    chosen = pretraining(source, method, **changes)
    model = build(chosen)
    return model, fill(model, read(str(source)), chosen.model)


@pytest.fixture
def trained() -> State:
    """Return tensors of a backbone other than the one that seed 0 makes."""
    torch.manual_seed(9)
    network = build_backbone(BACKBONE)
    return {name: value + 1 if value.is_floating_point() else value for name, value in network.state_dict().items()}


def assert_backbone(model: nn.Module, wanted: State, *networks: str) -> None:
    found = model.state_dict()
    for network in networks or ("online", "target"):
        for name, value in wanted.items():
            assert torch.equal(found[f"{network}.backbone.{name}"], value), name


def below(prefix: str, tensors: State) -> State:
    return {prefix + name: value for name, value in tensors.items()}


def numbered(name: str) -> str:
    head, _, rest = name.partition(".")
    number = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}[head]
    return f"{number}.{rest}"


FILES: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda own: own, ""),
    "torchvision": (lambda own: {**own, "fc.weight": torch.ones(3, 64), "fc.bias": torch.ones(3)}, ""),
    "lightly": (lambda own: {"state_dict": below("backbone.", own), "epoch": 3}, "state_dict.backbone"),
    "sequential": (
        lambda own: {"state_dict": {f"backbone.{numbered(name)}": value for name, value in own.items()}},
        "state_dict.backbone",
    ),
    "data parallel": (lambda own: below("module.", own), "module"),
    "compiled": (lambda own: {"model": below("_orig_mod.student.backbone.", own)}, "model._orig_mod.student.backbone"),
    "with its average": (
        lambda own: (
            below("backbone_momentum.", {name: 0 * value for name, value in own.items()}) | below("backbone.", own)
        ),
        "backbone",
    ),
    "teacher first": (
        lambda own: (
            below("teacher_backbone.", {name: 0 * value for name, value in own.items()})
            | below("student_backbone.", own)
        ),
        "student_backbone",
    ),
    "half precision": (
        lambda own: {name: value.half() if value.is_floating_point() else value for name, value in own.items()},
        "",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_backbone_is_found_in_checkpoints_of_other_libraries(name: str, trained: State, tmp_path: Path) -> None:
    make, prefix = FILES[name]
    if name == "half precision":
        trained = {key: value.half().float() if value.is_floating_point() else value for key, value in trained.items()}
    file = tmp_path / "weights.ckpt"
    torch.save(make(trained), file)
    model, loaded = start(file)
    assert_backbone(model, trained)
    assert loaded.prefix == prefix
    assert (loaded.loaded, loaded.wanted, loaded.missing, loaded.mismatched) == (len(trained), len(trained), [], [])
    assert loaded.networks == "online.backbone and target.backbone"
    assert read(str(file)).sha256 == hash_file(file)
    if name == "torchvision":
        assert loaded.text.endswith("; not used from the file: 2 (fc.weight, fc.bias)")
    assert torch.equal(model.state_dict()["predictor.net.0.weight"], build(pretraining("")).state_dict()[
        "predictor.net.0.weight"
    ])  # fmt: skip


def test_an_option_selects_the_network(trained: State, tmp_path: Path) -> None:
    other = {name: 0 * value for name, value in trained.items()}
    torch.save(below("student.", other) | below("teacher.", trained), tmp_path / "both.pth")
    source = f"weights:{BACKBONE}@{tmp_path / 'both.pth'}+prefix=teacher"
    assert_backbone(start(source)[0], trained)
    with pytest.raises(UserError, match=r"none of its \d+ tensors .* belongs to the backbone below the prefix nothing"):
        start(source.replace("teacher", "nothing"))


def test_our_own_backbone_file_or_its_folder(trained: State, tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    save_file(trained, file)
    card = BackboneMetadata(BACKBONE, "online", 64, (0.5,) * 3, (0.5,) * 3, 32, {}, sha256=hash_file(file))
    (tmp_path / "backbone.json").write_text(json.dumps(asdict(card)))
    for source in (file, tmp_path):
        assert_backbone(start(source, "simclr")[0], trained, "online")
    with pytest.raises(UserError, match=r"weights of test_resnet, but model\.backbone=resnet10t\. Fix: set model\.b"):
        start(file, backbone="resnet10t")
    save_file({name: value + 1 for name, value in trained.items()}, file)
    with pytest.raises(UserError, match=r"^model\.init=.*is corrupt, or does not match its backbone\.json"):
        read(str(file))


def test_timms_weights(trained: State, monkeypatch: pytest.MonkeyPatch) -> None:
    make = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        network = make(name, **options)
        if pretrained:
            network.load_state_dict(trained)
        return network

    monkeypatch.setattr(timm, "create_model", create)
    model, _ = start(f"timm:{BACKBONE}")
    assert_backbone(model, trained)
    assert read(f"timm:{BACKBONE}").sha256 == read(f"timm:{BACKBONE}").sha256
    assert read(f"timm:{BACKBONE}").mean == timm.get_pretrained_cfg(BACKBONE).mean


def test_positions_of_a_transformer_are_interpolated(tmp_path: Path) -> None:
    torch.manual_seed(9)
    network = timm.create_model("test_vit", num_classes=0, img_size=64)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    model, loaded = start(tmp_path / "vit.safetensors", "mae")
    found = model.state_dict()["online.backbone.pos_embed"]
    assert loaded.mismatched == []
    assert found.shape == (1, 5, 64)
    assert torch.equal(found[:, 0], network.pos_embed[:, 0])


REGISTERS, DINOV3 = "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb"


def as_dinov2(own: State) -> State:
    """Return tensors under the names of DINOv2's own files, whose class token has a position."""
    rest = {name: value for name, value in own.items() if name not in ("reg_token", "pos_embed", "cls_token")}
    first = torch.ones(1, 1, 384)
    positions = torch.cat([first, own["pos_embed"]], dim=1)
    tokens = {"cls_token": own["cls_token"] - first, "register_tokens": own["reg_token"], "pos_embed": positions}
    return {**rest, **tokens, "mask_token": torch.zeros(1, 384)}


def as_dinov3(own: State) -> State:
    """Return tensors under the names of DINOv3's own files."""
    found = {name: value for name, value in own.items() if not name.endswith(("q_bias", "v_bias", "k_bias"))}
    for name in [name for name in own if name.endswith("q_bias")]:
        stem = name.removesuffix("q_bias")
        parts = [own[f"{stem}q_bias"], torch.zeros_like(own[f"{stem}q_bias"]), own[f"{stem}v_bias"]]
        found[f"{stem}qkv.bias"] = torch.cat(parts)
    for old, new in (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
        found = {name.replace(old, new): value for name, value in found.items()}
    return {**found, "mask_token": torch.zeros(1, 192), "rope_embed.periods": torch.ones(16)}


@pytest.mark.parametrize(("name", "rename", "side"), [(REGISTERS, as_dinov2, 28), (DINOV3, as_dinov3, 32)])
def test_the_authors_files_of_dinov2_and_dinov3_are_read(
    name: str, rename: Callable[[State], State], side: int, tmp_path: Path
) -> None:
    """Also by an evaluation; the positions are those of a larger image."""
    torch.manual_seed(9)
    own = build_backbone(name, 0, 2 * side).state_dict()
    own = {key: value + 0.5 for key, value in own.items()}
    torch.save(rename(own), tmp_path / "weights.pth")
    chosen = replace(pretraining(tmp_path / "weights.pth", backbone=name), views=replace(VIEWS, size=side))
    model = build(chosen)
    loaded = fill(model, read(str(tmp_path / "weights.pth")), chosen.model)
    assert (loaded.loaded, loaded.missing, loaded.mismatched) == (loaded.wanted, [], [])
    found = model.state_dict()
    for key, value in own.items():
        if key != "pos_embed":
            assert torch.allclose(found[f"online.backbone.{key}"], value, atol=1e-6), key
            assert torch.equal(found[f"target.backbone.{key}"], found[f"online.backbone.{key}"]), key
    assert ("pos_embed" in own) == (name == REGISTERS)
    if name == REGISTERS:
        assert found["online.backbone.pos_embed"].shape == (1, 4, 384)
    evaluated = open_backbone(f"weights:{name}@{tmp_path / 'weights.pth'}+size={2 * side}").module.network.state_dict()
    assert all(torch.allclose(evaluated[key], value, atol=1e-6) for key, value in own.items())


def test_positions_of_a_transformer_with_registers_are_interpolated(tmp_path: Path) -> None:
    torch.manual_seed(9)
    network = build_backbone(REGISTERS, 0, 56)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    chosen = replace(pretraining(tmp_path / "vit.safetensors", backbone=REGISTERS), views=replace(VIEWS, size=28))
    model = build(chosen)
    loaded = fill(model, read(str(tmp_path / "vit.safetensors")), chosen.model)
    assert loaded.mismatched == loaded.missing == []
    assert model.state_dict()["online.backbone.pos_embed"].shape == (1, 4, 384)  # no row for class and register tokens


def save_run(run: Path, method: str = "byol", **changes: object) -> State:
    """Write a run folder with one checkpoint; return its tensors."""
    chosen = pretraining("", method, **changes)
    tensors = build(chosen, seed=5).state_dict()
    state = TrainState(4, 32, config_digest(chosen), "corpus", "sgd", identity=run_identity(chosen))
    write(run, state, tensors, {})
    return tensors


@pytest.mark.parametrize("method", ["byol", "moco", "dino"])
def test_a_run_of_the_same_method_gives_all_its_tensors(method: str, tmp_path: Path) -> None:
    tensors = save_run(tmp_path, method)
    for source in (tmp_path, tmp_path / "checkpoints" / "step-00000004"):
        model, loaded = start(source, method)
        found = model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
        assert loaded.missing == loaded.mismatched == loaded.unexpected == []
        assert loaded.loaded == len([name for name in tensors if name != "progress"])


def test_a_run_of_another_method_gives_its_backbone(tmp_path: Path) -> None:
    tensors = save_run(tmp_path)
    wanted = {name[16:]: value for name, value in tensors.items() if name.startswith("online.backbone.")}
    model, loaded = start(tmp_path, "moco")
    assert_backbone(model, wanted)
    assert loaded.prefix == "online.backbone"


def test_what_does_not_fit_is_reported(trained: State, tmp_path: Path) -> None:
    save_run(tmp_path / "run", head_hidden_dim=16)
    _, loaded = start(tmp_path / "run")
    assert "online.projector.net.0.weight" in loaded.mismatched
    assert "of another shape: " in loaded.text
    first, second = list(trained)[:2]
    part = {name: value for name, value in trained.items() if name != second} | {first: trained[first][:1]}
    torch.save(part, tmp_path / "part.pth")
    model, loaded = start(tmp_path / "part.pth")
    assert (loaded.missing, loaded.mismatched) == ([second], [first])
    kept = build(pretraining("")).state_dict()
    assert torch.equal(model.state_dict()[f"online.backbone.{first}"], kept[f"online.backbone.{first}"])


def test_sources_without_usable_weights_are_refused_in_one_line(trained: State, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    torch.save({name: trained[name] for name in list(trained)[:3]}, tmp_path / "few.pth")
    torch.save({name: value * float("nan") for name, value in trained.items()}, tmp_path / "nan.pth")
    torch.save(below("x.", trained) | {"f": print}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("no weights")
    refusals = {
        "run": r"a run without a complete checkpoint\. Fix: wait",
        "nowhere.pth": r"does not exist\. Fix: check the path",
        "other.pth": r"none of its 1 tensors \(a\) belongs to the backbone under any prefix\. Fix: set model\.backbone",
        "few.pth": r"only 3 of \d+ tensors of model\.backbone=test_resnet fit, less than half",
        "nan.pth": r"tensors have values that are not finite",
        "code.pth": r"is refused, it needs print: only tensors are loaded",
        "text.pth": r"",
    }
    for name, words in refusals.items():
        with pytest.raises(UserError, match=rf"^model\.init={tmp_path / name}: .*{words}") as error:
            start(tmp_path / name)
        assert "\n" not in str(error.value)
    for source, words in (("random:resnet18", "leave model.init empty"), ("timm:resnet1O", "timm has no")):
        with pytest.raises(UserError, match=words):
            read(source)


def test_a_submission_checks_that_the_source_exists(tmp_path: Path) -> None:
    check_place(str(tmp_path))
    check_place("timm:resnet18")
    for source in ("nowhere", "torchvision:resnet18@nowhere.pth"):
        with pytest.raises(UserError, match=rf"^model\.init={source}: nowhere.* does not exist"):
            check_place(source)


def test_the_place_in_the_identity_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for source, wanted in {
        "": "",
        "runs/a": f"{tmp_path}/runs/a",
        "/runs/a@b": "/runs/a@b",
        "a@b/c.pth": f"{tmp_path}/a@b/c.pth",
        "timm:resnet18.a1_in1k": "timm:resnet18.a1_in1k",
        "torchvision:resnet18@w.pth": f"torchvision:resnet18@{tmp_path}/w.pth",
        "simfle:w.pth": f"simfle:{tmp_path}/w.pth",
        "weights:vit@/w.pth+prefix=a": "weights:vit@/w.pth+prefix=a",
    }.items():
        assert absolute_source(source) == wanted
    assert run_identity(pretraining("runs/a"))["model.init"] == f"{tmp_path}/runs/a"


def test_the_record_says_what_was_loaded(trained: State, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(below("backbone.", trained) | {"fc.bias": torch.ones(3)}, file)
    chosen = replace(pretraining(file), train=TrainConfig(run_dir=str(tmp_path)))
    printed: list[str] = []
    digest = initialize(chosen, printed)
    found = json.loads((tmp_path / "init.json").read_text())
    assert found["source"] == str(file)
    assert found["sha256"] == digest == hash_file(file)
    assert (found["loaded"], found["wanted"], found["missing"], found["unexpected"]) == (len(trained),) * 2 + (0, 1)
    assert found["unexpected_names"] == ["fc.bias"]
    (line,) = printed
    assert line.startswith(f"model.init={file}: loaded {len(trained)} of {len(trained)} tensors of online.backbone")
    assert init_weights.recorded(tmp_path, found["sha256"]) == found["sha256"]
    with pytest.raises(UserError, match=r"init\.json records other weights \(sha256 .*\. Fix: restore the init\.json"):
        init_weights.recorded(tmp_path, "0" * 64)


def initialize(chosen: PretrainConfig, printed: list[str]) -> str:
    """Fill a model on one process, without a process group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(init_weights, "main_process_tries", lambda world, action: action())
        run = Path(chosen.train.run_dir)
        return init_weights.initialize(build(chosen), chosen.model, run, ALONE, printed.append)


STILL = ("train.steps=1", "optim.lr=0", "optim.weight_decay=0")
SEQUENCE: list[list[str]] = [
    ["run", "source", "model.method=byol", "train.steps=2"],
    ["run", "same", "model.method=byol", "model.init=OUT/source", *STILL],
    ["run", "other", "model.method=simclr", "model.init=OUT/source", *STILL],
    ["copy", "source", "lost"],
    ["run", "kept", "model.method=byol", "model.init=OUT/lost", "train.steps=4", "train.stop_after_step=2"],
    ["run", "whole", "model.method=byol", "model.init=OUT/lost", "train.steps=4"],
    ["remove", "lost"],
    ["run", "kept", "model.method=byol", "model.init=OUT/lost", "train.steps=4"],  # 7
    ["run", "kept", "model.method=byol", "model.init=OUT/source", "train.steps=4"],  # 8: refused
    ["run", "never", "model.method=byol", "model.init=OUT/lost", "train.steps=4"],  # 9: refused
]


@pytest.fixture(scope="module")
def out(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("started")
    command = [sys.executable, str(SCRIPT), str(faces), str(folder), json.dumps(SEQUENCE)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def saved(run: Path) -> State:
    """Return the newest checkpoint's tensors."""
    return load_file(max((run / "checkpoints").glob("step-*")) / "model.safetensors")


def parameters(tensors: State, prefix: str = "") -> State:
    """Return tensors below `prefix`, without BatchNorm statistics, which follow each batch."""
    moving = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in tensors.items() if name.startswith(prefix) and not name.endswith(moving)}


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(out: Path) -> None:
    source = saved(out / "source")
    for run, prefix in (("same", "online."), ("same", "predictor."), ("other", "online.backbone.")):
        found = parameters(saved(out / run), prefix)
        assert found
        assert all(torch.equal(value, source[name]) for name, value in found.items()), run
    for run in ("same", "other"):
        facts = json.loads((out / run / "init.json").read_text())
        assert facts["sha256"] == hash_file(out / "source/checkpoints/step-00000002/model.safetensors")
        state = json.loads((out / run / "checkpoints/step-00000001/state.json").read_text())
        assert state["init"] == facts["sha256"]
        assert state["identity"]["model.init"] == str(out / "source")


@pytest.mark.slow
def test_a_resumed_run_does_not_read_the_weights_again(out: Path) -> None:
    losses = {
        run: [json.loads(line)["losses"] for line in (out / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("kept", "whole")
    }
    assert len(losses["kept"]) == 4
    assert losses["kept"] == losses["whole"]
    assert "model.init=" in (out / "4.txt").read_text()
    assert "model.init=" not in (out / "7.txt").read_text()
    state = json.loads((out / "kept/checkpoints/step-00000004/state.json").read_text())
    assert state["init"] == json.loads((out / "kept/init.json").read_text())["sha256"]
    assert f"model.init: {out / 'lost'} -> {out / 'source'}" in (out / "8.txt").read_text()
    assert f"model.init={out / 'lost'}: {out / 'lost'} does not exist" in (out / "9.txt").read_text()


@pytest.mark.slow
def test_two_processes_with_partitioned_parameters_start_from_the_same_weights(faces: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    own = build_backbone("resnet10t").state_dict()
    torch.save(below("backbone.", own), tmp_path / "weights.ckpt")
    settings = ("model.method=simclr", f"model.init={tmp_path / 'weights.ckpt'}", "train.zero_stage=3", *STILL)
    output = runs.finish(2, faces, tmp_path / "run", *settings)
    assert output.count("tensors of online.backbone from backbone") == 1
    found = parameters(saved(tmp_path / "run"), "online.backbone.")
    assert all(torch.equal(value, own[name.removeprefix("online.backbone.")]) for name, value in found.items())
