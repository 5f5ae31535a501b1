"""Wrong use, as a table: what is typed, the one line that is printed, the exit code. Never a traceback."""

import logging
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import shards
import simfle
from simfle.commands.main import app, main

pytestmark = pytest.mark.slow

CPU = "configs/pretrain/faces_cpu.yaml"

# (id, words, exit code, what the line must say). {faces}, {empty}, {file}, {pictures}: see `places`.
TABLE = [
    ("no such command", "pretrian", 2, "No such command 'pretrian'. Did you mean 'pretrain'?"),
    ("no such subcommand", "shards verfy {faces}", 2, "No such command 'verfy'. Did you mean 'verify'?"),
    ("no such option", "pretrain --proceses 2", 2, "No such option: --proceses"),
    ("option without its value", "doctor --nodes", 2, "requires an argument"),
    ("a word for a number", "pretrain --processes two", 2, "Invalid value for '--processes'"),
    ("argument missing", "export", 2, "Missing argument"),
    ("no such key", f"pretrain {CPU} trian.steps=5", 1, "unknown key 'trian.steps' in command line; did you mean"),
    ("no such value", f"pretrain {CPU} data.shards=[{{faces}}] train.precision=fp16", 1, "must be bf16 or fp32"),
    ("wrong type", f"pretrain {CPU} train.steps=many", 1, "train.steps"),
    ("not key=value", f"pretrain {CPU} train.steps", 1, "not key=value. Fix: write it like train.seed=1"),
    ("no such configuration", "pretrain configs/pretrain/face_cpu.yaml", 1, f"did you mean {CPU}?"),
    ("an endless run", f"pretrain {CPU} train.epochs=inf", 1, "train.epochs=inf: must be a finite number"),
    ("a loss of nothing", f"pretrain {CPU} " "model.distillation_weight=nan", 1,
        "model.distillation_weight=nan: must be a finite number"),
    ("fewer steps than none", f"pretrain {CPU} train.steps=-3", 1, "train.steps=-3: must be at least 0"),
    ("uphill", f"pretrain {CPU} optim.lr=-1", 1, "optim.lr=-1.0: must be at least 0"),
    ("no run named", f"pretrain {CPU} train.run_dir= " f"data.shards=[{{faces}}]", 1,
        "train.run_dir='': must be a non-empty text. Fix: set train.run_dir="),
    ("no output named", "evaluate configs/eval/quick.yaml shards=[{faces}] out= backbones=[{file}]", 1,
     "out='': must be a non-empty text. Fix: set out=eval"),
    ("no run folder", "pretrain {pictures}", 1, "the run folder is missing. Fix: add --out runs/NAME"),
    ("two run folders", "pretrain {pictures} --out a train.run_dir=b", 1, "train.run_dir=b: also set by --out=a"),
    ("two run folders of a configuration", f"pretrain {CPU} --out a train.run_dir=b", 1,
     "train.run_dir=b: also set by --out=a. Fix: set only one"),
    ("two sets of data", "pretrain {pictures} --out a data.shards=[b]", 1, "data.shards=[b]: also set by"),
    ("two configurations", f"pretrain {CPU} --config {CPU}", 1, "only valid with DATA"),
    ("no such data", "pretrain nowhere/faces --out a", 1, "nowhere/faces is not a folder. Fix: pass shards or"),
    ("too few images", "pretrain {pictures} --out a", 1, "only 3 images for training, at least 32 are needed"),
    ("a wrong value for data", "pretrain {pictures} --out a trian.steps=5", 1, "did you mean train.steps?"),
    ("no shards named", f"pretrain {CPU}", 1, "data.shards=[]: empty. Fix: name a shard folder"),
    ("images for shards", f"pretrain {CPU} data.shards=[{{pictures}}]", 1, "has no manifest.json. Fix: run simfle"),
    ("swapped shards and output", "shards build folder {empty}/new {faces}", 1, "new: does not exist. Fix: check"),
    ("no such archive", "shards build mtfl {empty}/x.zip {empty}/out", 1, "x.zip: does not exist. Fix: check the path"),
    ("output inside the images", "shards build folder {pictures} {pictures}/out", 1, "inside the source"),
    ("a folder without images", "shards build folder {empty} {empty}-out", 1, "no images in"),
    ("a file for a folder", "shards verify {file}", 1, "is not a folder"),
    ("no such split", "shards statistics {faces} --split trian", 1, "no split 'trian' in these shards. Fix: choose"),
    ("no such run", "export runs/none", 1, "runs/none is not a run folder"),
    ("shards for a run", "watch {faces}", 1, "no folder with a config.yaml"),
    ("no such runs", "runs nowhere", 1, "nowhere: not a folder"),
    ("report of nothing", "report nowhere", 1, "nowhere"),
    ("swapped data and backbone", "embed {file} {faces} out.npz", 1, "backbone"),
    ("embeddings as text", "embed {faces} timm:resnet18 out.txt", 1, "use a name that ends in .npz, .parquet or .csv"),
    ("no such model", "embed {faces} random:resnet1800 out.npz", 1, "resnet1800"),
    ("no GPU", "embed {faces} random:resnet18 out.npz --device cuda", 1, "torch finds no GPU. Fix: set device=cpu"),
    ("no GPU to train on", f"pretrain {CPU} data.shards=[{{faces}}] train.device=cuda", 1, "torch sees no GPU"),
    ("batch not shared", f"pretrain {CPU} data.shards=[{{faces}}] train.global_batch=16 train.micro_batch=5", 1,
     "train.micro_batch=5: does not divide the 16 samples"),
    ("a run among shards", f"pretrain {CPU} data.shards=[{{faces}}] train.run_dir={{faces}}", 1,
     "a shard folder (manifest.json)"),
    ("no Slurm", "slurm pretrain --gpus-per-node 0 data.shards=[{faces}] train.global_batch=16 train.run_dir=run", 1,
     "sbatch and srun are not installed here. Fix: submit from a login node, or add --dry-run"),
    ("no Slurm for the doctor", "doctor --folder {empty} --nodes 2", 1, "sbatch and srun are not installed here"),
    ("no benchmark", "evaluate benchmarks=[rafbd={faces}] backbones=[{file}]", 1, "Fix: use rafdb"),
    ("evaluate nothing", "evaluate configs/eval/quick.yaml shards=[{faces}]", 1, "pass --run RUN, --backbone FILE"),
    ("figures below a file", "bench loader {pictures} --out {file}/figures.json", 1,
     "figures.json: cannot be written"),
    ("figures in place of a folder", "bench startup --out {empty}", 1,
     "cannot be written. Fix: name a file in a writable"),
    ("a list below a file", "shards duplicates {faces} --list {file}/list", 1,
     "Not a directory. Fix: choose another path"),
    ("a scheme that is not allowed", f"pretrain {CPU} data.shards=[ftp://host/faces]", 1, "'ftp' is not allowed"),
    ("a folder that cannot be made", f"pretrain {CPU} data.shards=[{{faces}}] train.run_dir={{file}}/run", 1,
     "cannot be written"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shards; an empty folder; a file that is none; a folder of three images."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("empty", "pictures"):
        (folder / name).mkdir()
    (folder / "file").write_text("neither YAML nor a picture\n")
    for item in shards.open(faces)[:3]:
        (folder / "pictures" / f"{item.key}.jpg").write_bytes(item.image_bytes)
    return {"faces": str(faces)} | {name: str(folder / name) for name in ("empty", "file", "pictures")}


@pytest.mark.parametrize(("words", "code", "wanted"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_wrong_use_is_told_in_one_line(
    words: str,
    code: int,
    wanted: str,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm, whatever the machine has
    monkeypatch.setenv("COLUMNS", "300")
    for name in (None, "simfle", "shards"):  # each test has its own stderr
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    monkeypatch.setattr("simfle.doctor.checks.TRIAL", 1 << 20)
    monkeypatch.setattr(sys, "argv", ["simfle", *words.format(**places).split()])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == code, printed.err
    assert "Traceback" not in printed.err
    lines = [line for line in printed.err.splitlines() if wanted in line]
    assert len(lines) == 1, printed.err
    assert lines[0].lower().startswith("error: ")
    assert len([line for line in printed.err.splitlines() if line.lower().startswith("error")]) == 1


def test_a_folder_that_may_not_be_written(places: dict[str, str], tmp_path: Path) -> None:
    """As root every folder may be written, so one whose file system is read only: /proc."""
    backbone = simfle.load_backbone("random:resnet18+size=32")
    with pytest.raises(simfle.UserError, match="cannot be written"):
        simfle.embed(places["pictures"], backbone, "/proc/features.npz")


def test_a_missing_extra_names_the_command_that_installs_it(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    from simfle.eval.backbones.external import open_backbone
    from simfle.export.onnx import export_onnx

    with pytest.raises(simfle.UserError, match=r"pip install .*onnx"):
        export_onnx(open_backbone("random:resnet18+size=32"), tmp_path / "backbone.onnx")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: simfle.pretrain(p["file"], "out"), "is not a folder. Fix: pass shards or a folder of images"),
        (lambda p: simfle.pretrain(p["pictures"], p["pictures"] + "/out"), "is inside the images"),
        (lambda p: simfle.pretrain(p["faces"], "out", settings={"train.sedd": 1}), "did you mean train.seed"),
        (lambda p: simfle.pretrain(p["faces"], "out", processes=0), "processes=0: must be at least 1"),
        (lambda p: simfle.load_backbone("nowhere"), "does not exist"),
        (lambda p: simfle.load_backbone("random:resnet18", device="gpu"), "choose auto, cpu or cuda"),
        (lambda p: simfle.embed(p["empty"], "random:resnet18"), "no images in"),
        (lambda p: simfle.embed(p["pictures"], "random:resnet18", splits=["train"]), "only shards have splits"),
        (lambda p: simfle.embed("https://host/faces", "random:resnet18"), "not a folder|is a URL"),
        (lambda p: shards.open("https://host/faces"), "is a URL. Fix: copy the shards"),
        (lambda p: shards.open(p["pictures"]), "has no manifest.json"),
    ],
)  # fmt: skip
def test_wrong_calls_are_told_in_one_line(call: object, words: str, places: dict[str, str], tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(simfle.UserError, match=words) as found:
        call(places)  # type: ignore[operator]
    assert "\n" not in str(found.value)


def test_help_is_offered_where_nothing_is_typed() -> None:
    done = CliRunner().invoke(app(), [])
    assert "Commands:" in done.output
