"""Every printed next command works: from a folder of 40 images and from one of 5,000, under names that shells and YAML
would parse."""

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.format.manifest import FORMAT, Manifest, ShardInfo
from simfle.commands import main
from simfle.commands.next_steps import pretrain_commands, refuse_folder
from simfle.config.schema import PretrainConfig, load
from simfle.errors import UserError
from simfle.runtime.distributed import preserve_process_state
from simfle.train.preflight import check

pytestmark = pytest.mark.slow

CHEAP = {  # added to a printed command: less of the same work
    "pretrain": ["train.steps=1", "train.device=cpu", "model.backbone=test_resnet", "views.size=32"],
    "evaluate": ["seeds=[0]", "protocols=[knn]", "device=cpu", "bootstrap_samples=10"],
    "embed": ["--device", "cpu"],
    "shards verify": ["--workers", "1"],
}


def write_faces(folder: Path, count: int, people: int) -> None:
    """Small noise in two class folders; the names hold person and number."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("froh" if number % 2 else "wütend #2") / f"p{number // 2 % people}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
        path.write_bytes(cv2.imencode(".png", cv2.resize(coarse, (24, 24)))[1].tobytes())


def run(*words: str) -> str:
    """Run a command line in this process; return what it prints."""
    out = io.StringIO()
    before = sys.argv
    sys.argv = list(words)
    try:
        with contextlib.redirect_stdout(out), preserve_process_state():
            main.main()
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{shlex.join(words)}: exit code {end.code}")
    finally:
        sys.argv = before
    return out.getvalue()


def printed(text: str) -> Iterator[str]:
    """The next commands in an output."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if line.startswith("next: "):
            yield line.removeprefix("next: ")
            for more in lines[place + 1 :]:
                if not more.startswith("      simfle "):
                    break
                yield more.strip()


def follow(first: list[str]) -> list[str]:
    """Run a command and every next command that it or they print, each once, in order."""
    todo, done = list(printed(run(*first))), []
    while todo:
        line = todo.pop(0)
        words = shlex.split(line)
        if words in done:
            continue
        done.append(words)
        more = CHEAP.get(" ".join(words[1:3]) if words[1] == "shards" else words[1], [])
        todo += printed(run(*words, *more))
    return [" ".join(words[1 : 3 if words[1] == "shards" else 2]) for words in done]


@pytest.mark.parametrize(
    ("count", "name", "options", "steps"),
    [
        (
            40,
            "my, faces [v2] #1",
            [],
            ["shards verify", "pretrain", "embed", "shards split", "evaluate", "report"],
        ),
        (
            5000,
            "Gefühle = 'ü' & (more) {x}",
            ["--val-fraction", "0.2", "--test-fraction", "0.2", "--group-pattern", r"(p\d+)_", "--near-duplicates"],
            ["shards verify", "pretrain", "embed", "evaluate", "report"],
        ),
    ],
)  # fmt: skip
def test_every_printed_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, name: str, options: list[str], steps: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_faces(Path("in"), count, people=50)
    words = ["simfle", "shards", "build", "folder", "in", f"data/{name}", "--class-folders", *options]
    done = follow([*words, "--workers", "1"])
    assert [step for step in steps if step not in done] == []
    assert (tmp_path / "runs" / name / "features.npz").is_file()
    assert (tmp_path / "runs" / name / "report.html").is_file()


def manifest(**samples: int) -> Manifest:
    shards = tuple(ShardInfo(f"{split}-000000.tar", split, count, 1, "0") for split, count in samples.items())
    return Manifest(FORMAT, "c", "", (), sum(samples.values()), {}, shards, {})


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("images", [2, 3, 40, 64, 999, 1000, 5000, 10**5, 10**7])
def test_the_configuration_fits_the_images_and_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, gpu: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for splits in ({"train": images, "test": 10**8}, {"faces": images}):
        (line,) = pretrain_commands(Path("data/x"), manifest(**splits), gpu)
        words = shlex.split(line)
        made = load(PretrainConfig, Path(words[2]), words[3:])
        check(made)
        assert 2 <= made.train.global_batch <= images
        assert made.data.splits == [next(iter(splits))]
        assert ("resnet50" in words[2]) == (gpu and images >= 2560)
        steps = made.train.steps or made.train.epochs * images / made.train.global_batch
        assert gpu or steps <= 2500
    assert pretrain_commands(Path("x"), manifest(train=1), gpu) == []


def test_another_run_is_never_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/x", "runs/x-2", "runs/x-3"):
        assert pretrain_commands(Path("data/x"), manifest(train=9), gpu=False)[0].count(f"train.run_dir={name} ") == 1
        Path(name).mkdir(parents=True)


def test_a_folder_for_a_configuration_leads_to_the_right_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_faces(Path("my faces"), 4, people=2)
    (tmp_path / "runs/a/checkpoints").mkdir(parents=True)
    for command, place, words in (
        ("pretrain", "my faces", "simfle shards build folder 'my faces' 'data/my faces'"),
        ("evaluate", "my faces", "simfle shards build folder 'my faces' 'data/my faces'"),
        ("pretrain", "runs/a", "simfle pretrain runs/a/config.yaml"),
        ("evaluate", "runs/a", "simfle evaluate configs/eval/quick.yaml --run runs/a 'shards=[SHARDS]'"),
    ):
        with pytest.raises(UserError) as raised:
            refuse_folder(Path(place), command)
        assert str(raised.value) == f"config={place}: a folder, not a YAML file. Fix: run {words}."
    run("simfle", "shards", "build", "folder", "my faces", "data/my faces", "--workers", "1")
    with pytest.raises(UserError, match=r"Fix: run simfle pretrain configs/pretrain/quickstart\.yaml 'data.shards="):
        refuse_folder(Path("data/my faces"), "pretrain")
    refuse_folder(Path("configs/no.yaml"), "pretrain")
    monkeypatch.setattr(sys, "argv", ["simfle", "pretrain", "data/my faces"])
    with pytest.raises(SystemExit):
        main.main()


def test_a_path_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_faces(Path("in"), 4, people=2)
    text = run("simfle", "shards", "build", "folder", "in", "./-out", "--workers", "1")
    line = next(printed(text))
    assert line == "simfle shards verify ./-out"
    assert "no problems" in run(*shlex.split(line), "--workers", "1")
