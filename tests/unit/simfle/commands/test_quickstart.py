"""The quickstart on a user's own folder, really run; how folders are understood; what is refused."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shards.entry import LazyBytes
from shards.format.manifest import read_manifest
from shards.sources.synthetic.procedural import procedural
from simfle.commands.quickstart import LEAST, Layout, _layout, _next, _open, _stages
from simfle.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
TINY = ["train.steps=2", "model.backbone=test_resnet", "views.size=32", "train.global_batch=16", "train.log_every=1"]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Two classes of 28 drawn faces, eight people with up to seven images each."""
    folder = tmp_path / "faces"
    for entry in procedural(8, 28, 64):
        if entry.label in ("happiness", "sadness") and int(entry.key[-4:]) < 28:
            path = folder / str(entry.label) / f"{str(entry.group)[-2:]}_{entry.key[-2:]}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert isinstance(entry.read, LazyBytes)
            path.write_bytes(entry.read())
    return folder


def quickstart(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/quickstart.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_from_a_folder_to_a_page_and_again(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--out", str(out), "--data", str(faces), "--group-pattern", r"/(.*)_\d+\.jpg$", *TINY]
    done = quickstart(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.findall(r"^\[(\d)/5\] (\w+):", done.stdout, re.M)
    assert told == [("1", "shards"), ("2", "pretrain"), ("3", "export"), ("4", "evaluate"), ("5", "report")]
    assert done.stdout.count("done in") >= 4
    assert "$ python tools/build_shards.py folder" in done.stdout
    manifest = read_manifest(out / "shards")
    assert manifest.labels == ("happiness", "sadness")
    assert {shard.split for shard in manifest.shards} == {"train", "test"}
    results = json.loads((out / "run/eval/summary.json").read_text())
    assert {row["kind"] for row in results["table"]} == {"online", "random"}
    page = (out / "report.html").read_text()
    assert "share it accordingly" in page
    assert re.search(r"images of \d other people", re.sub(r"\s+", " ", page))

    again = quickstart(*words)
    assert again.returncode == 0
    assert again.stdout.count("already complete") == 4
    assert "$ python" not in again.stdout

    shutil.rmtree(out / "run" / "export")
    third = quickstart(*words)
    assert third.returncode == 0
    assert re.findall(r"\$ python tools/(\w+)", third.stdout) == ["export_backbone"]

    other = quickstart("--out", str(out))
    assert other.returncode == 1
    assert f"holds a quickstart on {faces}" in other.stderr


def test_a_failing_stage_ends_it_and_is_not_taken_for_done(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = quickstart("--out", str(out), "--data", str(faces), "train.stepz=2")
    assert done.returncode == 1
    assert "did you mean train.steps?" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: stage pretrain failed with exit code 1")
    assert list(json.loads((out / "quickstart.json").read_text())["stages"]) == ["shards"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["happy/{}.jpg", "sad/{}.jpg"], Layout(True, False, ("--class-folders",), False)),
        (["happy/a/{}.jpg", "sad/b/{}.PNG"], Layout(True, False, ("--class-folders",), False)),
        (["{}.jpg"], Layout(False, False, (), False)),
        (["happy/{}.jpg", "{}.jpg"], Layout(False, False, (), False)),
        (["photos/{}.jpg"], Layout(False, False, (), False)),
        (
            ["train/happy/{}.jpg", "train/sad/{}.jpg", "test/happy/{}.jpg"],
            Layout(True, True, ("--class-folders", "--split-folders"), True),
        ),
        (["train/{}.jpg", "test/{}.jpg"], Layout(False, True, ("--split-folders",), True)),
        (
            ["train/happy/{}.jpg", "valid/sad/{}.jpg"],
            Layout(True, True, ("--class-folders", "--split-folders"), True, test="val"),
        ),
        (
            ["train/happy/{}.jpg", "dev/sad/{}.jpg", "test/sad/{}.jpg"],
            Layout(True, True, ("--class-folders", "--split-folders"), True, val="val"),
        ),
        (["train/{}.jpg", "happy/{}.jpg"], Layout(True, False, ("--class-folders",), False)),
    ],
)
def test_layouts(tmp_path: Path, paths: list[str], expected: Layout) -> None:
    for pattern in paths:
        for number in range(LEAST):
            path = tmp_path / pattern.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "notes.txt").touch()
    assert _layout(tmp_path, "") == expected


def test_hundreds_of_folders_are_people_not_classes(tmp_path: Path) -> None:
    for number in range(150):
        (tmp_path / f"Name_{number}").mkdir()
        (tmp_path / f"Name_{number}" / "1.jpg").touch()
    assert not _layout(tmp_path, "").labeled


def test_the_probe_is_measured_on_the_split_that_is_there(tmp_path: Path) -> None:
    for layout, words in (
        (Layout(True, True, test="val"), ["test_split=val"]),
        (Layout(True, True, val="val"), ["val_split=val"]),
        (Layout(True), []),
    ):
        evaluate = _stages(tmp_path, tmp_path / "faces", layout, "", [])[-1]
        assert evaluate.name == "evaluate"
        assert [word for word in evaluate.commands[0] if "_split=" in word] == words


def test_longer_is_of_the_same_faces() -> None:
    line = _next(Path("mine"), Path("my faces"), r"^(.*)_\d+\.jpg$")[0]
    words = shlex.split(line)
    assert words[: words.index("train.steps=2000")] == [
        *("simfle", "quickstart", "--out", "mine2", "--data", "my faces"),
        *("--group-pattern", r"^(.*)_\d+\.jpg$"),
    ]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        _open(tmp_path / "out", tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"only 0 images.*at least {LEAST} are needed"):
        _layout(tmp_path, "")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and not a quickstart"):
        _open(full, None)
    (full / "quickstart.json").write_text("{")
    with pytest.raises(UserError, match="corrupt"):
        _open(full, None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be created"):
        _open(tmp_path / "file" / "out", None)
