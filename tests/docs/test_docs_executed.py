"""Run the pages: every command and every Python block, in order, in a folder like the reader's.

The reader's data (faces, corpora) is synthetic; options appended to a line make models and steps small.
Slurm commands print their script, whose command is then run locally. `ELSEWHERE` names what other tests cover.
"""

import contextlib
import importlib.util
import inspect
import io
import logging
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from distributed.runs import SETTINGS
from docs.pages import ALL, Block, Line, is_ours, ours, parse
from docs.pages import PAGES as FILES

import shards
import simfle
from simfle.commands.main import main
from simfle.config.schema import load
from simfle.doctor import checks
from simfle.eval.data.benchmarks import Benchmark
from simfle.eval.data.benchmarks import check as check_benchmark
from simfle.slurm.config import ClusterConfig

NAMES = (
    "anna",
    "bela",
    "carla",
    "dora",
    "emil",
    "frida",
    "gustav",
    "hanna",
    "ines",
    "jan",
    "kira",
    "lea",
    "mia",
    "noor",
    "olga",
)
# Words of a command line, and the test that covers it.
ELSEWHERE = {
    "simfle quickstart": "tests/unit/simfle/commands/test_quickstart.py",
    "--align": "tests/unit/shards/imaging/test_align.py",
    "--nodes 2": "tests/cluster/test_doctor.py",
    "bench startup": "tests/unit/simfle/bench/test_bench_training.py",
    "bench scaling": "tests/cluster/test_slurm_page.py",
    "bench peers": "tests/unit/simfle/bench/test_peers.py",
    "bench gpu": "tests/unit/simfle/bench/test_gpu_day.py",
    "[options]": "tests/unit/shards/sources",
    "configs/compare/": "tests/docs/test_docs_parsed.py",  # uses the corpus of docs/results.md
    "simfle compare": "tests/unit/simfle/eval/analysis/test_compare.py",
    "CONFIG": "tests/docs/test_docs_parsed.py",  # a synopsis
    "atelier": "tests/docs/test_docs_extending.py",
    "model.backbone=pebble": "tests/docs/test_docs_extending.py",
    "train.extend=true": "tests/unit/simfle/train/test_extend.py",
    "train.loggers=[": "tests/unit/simfle/train/telemetry/test_loggers.py",
    "model.method=barlow": "tests/docs/test_docs_extending.py",
    "path/to/ck+": "tests/unit/simfle/data/test_clip_pairs.py",
    "shards/ck": "tests/unit/simfle/data/test_clip_pairs.py",
}
DONE_BY_OTHERS = {"SLURM.md": "tests/cluster/test_slurm_page.py"}
TRAINING = [*SETTINGS, "train.steps=2", "train.checkpoint_every=2"]
EVALUATION = ["image_size=32", "threads=1", "seeds=[0]", "protocols=[linear_fast,knn]", "linear_fast.epochs=2",
              "linear.epochs=1", "bootstrap_samples=20"]  # fmt: skip
ALWAYS = ("train.steps", "--rounds", "--images", "--batch")  # also if the line gives another number
ADDED = {
    "pretrain": TRAINING,
    "plan": TRAINING,
    "bench step": [*TRAINING, "--rounds=1", "--batch=2"],
    "bench train": [*TRAINING, "--rounds=1"],
    "bench checkpoint": [*TRAINING, "--rounds=1"],
    "bench loader": ["--rounds=1", "--images=8"],
    "evaluate": EVALUATION,
    "shards build": ["--workers=1"],
    "shards verify": ["--workers=1"],
    "shards inspect": ["--workers=1"],
    "shards duplicates": ["--workers=1"],
    "slurm": ["--dry-run"],
}
PYTHON = {'("opencv", "dali", "ffcv")': '("opencv",)'}  # the others are compared in tests/unit/eval
RUNNABLE = [str(page.name) if page.parent.name != "docs" else f"docs/{page.name}" for page in FILES]
RUNNABLE = [
    page
    for page in RUNNABLE
    if page not in (*DONE_BY_OTHERS, "docs/extending.md")
    and any(block.page == page and block.kind in ("bash", "python", "yaml") for block in ALL)
]


def do(words: list[str]) -> str:
    """Run `simfle WORDS` in this process and return its output."""
    out, code = io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), patch.object(sys, "argv", ["", *words]):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert not code, f"simfle {' '.join(words)}\n{out.getvalue()}"
    return out.getvalue()


def added(words: list[str]) -> list[str]:
    """Return options that make the command small, unless the line sets them."""
    name = next((name for name in ADDED if " ".join(words).startswith(f"{name} ")), "")
    given = {word.split("=")[0] for word in words} - set(ALWAYS)
    return [word for word in ADDED.get(name, []) if word.split("=")[0] not in given]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the readers' data: images in class folders, a list, corpora in their layouts."""
    here = tmp_path_factory.mktemp("drawn")
    options = ["--people", "15", "--images-per-person", "21", "--size", "64", "--workers", "1"]
    do(["shards", "build", "procedural", str(here / "all"), *options])
    faces = shards.open(here / "all")
    people = sorted({item.metadata["group"] for item in faces})
    rows, seen = ["image,emotion"], Counter[tuple[str, str]]()
    for number, item in enumerate(faces):
        person = NAMES[people.index(item.metadata["group"])]
        seen[person, item.label] += 1
        write(here / f"path/to/faces/{item.label}/{person}-{seen[person, item.label]:02d}.jpg", item.image_bytes)
        write(here / f"path/to/images/{person}_{number}.jpg", item.image_bytes)
        rows.append(f"{person}_{number}.jpg,{item.label}")
        affectnet(here / "corpora/affectnet/train_set", number, item.image_bytes)
        if person in NAMES[:4]:
            split = "test" if person == "anna" else "train"
            write(
                here / f"corpora/rafdb/DATASET/{split}/{faces.labels.index(item.label) + 1}/{number}.jpg",
                item.image_bytes,
            )
    affectnet(here / "corpora/affectnet/val_set", 0, item.image_bytes)
    (here / "list.csv").write_text("\n".join(rows) + "\n")
    for name in ("faces", "my_data_dir"):
        (here / name).symlink_to(here / "path/to/faces")
    return here


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def affectnet(folder: Path, number: int, image: bytes) -> None:
    """Return a face of the 2021 release."""
    write(folder / f"images/{number}.jpg", image)
    (folder / "annotations").mkdir(exist_ok=True)
    notes = {"exp": str(number % 7), "val": "-0.125", "aro": "0.5", "lnd": np.arange(136) / 2}
    for name, value in notes.items():
        np.save(folder / "annotations" / f"{number}_{name}.npy", np.asarray(value))


@pytest.fixture(scope="module")
def earlier(drawn: Path) -> Path:
    """Create what a page takes from earlier pages: shards with labels, people and a test split; a run."""
    here = drawn / "earlier"
    options = ["--class-folders", "--test-fraction", "0.25", "--val-fraction", "0.25", "--workers", "1"]
    options += ["--group-pattern", r"([^/]+)-\d+\.jpg$"]
    do(["shards", "build", "folder", str(drawn / "path/to/faces"), str(here / "shards"), *options])
    (drawn / "films").mkdir()  # SFEW uses other names for some expressions
    for folder in (drawn / "path/to/faces").iterdir():
        name = {"anger": "angry", "happiness": "happy", "sadness": "sad"}.get(folder.name, folder.name)
        (drawn / "films" / name).symlink_to(folder)
    options = ["--class-folders", "--val-fraction", "0.25", "--workers", "1"]
    do(["shards", "build", "folder", str(drawn / "films"), str(here / "sfew"), *options])
    words = [f"data.shards=[{here / 'shards'}]", f"train.run_dir={here / 'run'}"]
    do(["pretrain", *words, *TRAINING])
    return here


# Outputs of the pages, deleted before: shards, runs.
MAKES = {
    "README.md": ["shards", "runs"],
    "docs/ten-minutes.md": ["shards", "runs"],
    "docs/affectnet-rafdb.md": ["shards", "runs"],
    "docs/coming-from-lightly.md": ["shards", "runs"],
    "docs/results.md": ["shards", "runs"],
    "docs/data-protection.md": ["shards/mine"],
    "docs/methods.md": ["runs/byol"],
}


@pytest.fixture
def here(request: pytest.FixtureRequest, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of one page's reader."""
    page = request.getfixturevalue("page")
    for name in ("path", "corpora", "list.csv", "faces", "my_data_dir"):
        (tmp_path / name).symlink_to(drawn / name)
    (tmp_path / "shards").mkdir()
    made = MAKES.get(page, [])
    if "shards" not in made:
        earlier = request.getfixturevalue("earlier")
        found = {f"shards/{name}": "shards" for name in ("mine", "web", "raf", "rafdb")} | {"shards/sfew": "sfew"}
        found |= {"FACES": "shards", "SHARDS": "shards", "runs/mine": "run", "runs/byol": "run"}
        for name, source in found.items():
            if name not in made:
                shutil.copytree(earlier / source, tmp_path / name)
    for block in ALL:
        if block.page == page and block.kind == "yaml" and (name := re.match(r"# (\w+\.yaml)", block.text)):
            (tmp_path / name[1]).write_text(block.text)
    (tmp_path / "two.yaml").write_text("classes: [happiness, neutral]\n")
    (tmp_path / "betons").mkdir()
    monkeypatch.chdir(tmp_path)
    if page == "docs/evaluation.md":  # whose last lines compare with another run's results
        words = ["configs/eval/quick.yaml", "--run", "runs/byol", "benchmarks=[rafdb=shards/rafdb]"]
        do(["evaluate", *words, *EVALUATION])
    monkeypatch.setattr(checks, "TRIAL", 1 << 20)  # bytes that the doctor writes and reads
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `simfle.pretrain` and `simfle.evaluate` as the page does, with a small model."""
    for name, words in (("pretrain", TRAINING), ("evaluate", EVALUATION)):
        real = getattr(simfle, name)

        def call(*given: Any, real: Any = real, words: list[str] = words, **named: Any) -> Any:
            inspect.signature(real).bind(*given, **named)
            settings = dict(word.split("=", 1) for word in words) | dict(named.pop("settings", {}))
            return real(*given, settings=settings, **named)

        monkeypatch.setattr(simfle, name, call, raising=False)


def execute(line: Line) -> None:
    words = ours(line.words)
    said = " ".join(line.words) + " " + " ".join(words)
    if any(name in said for name in ELSEWHERE):
        return
    if words[:2] == ["shards", "ffcv"] and importlib.util.find_spec("ffcv") is None:
        return
    if words[0] == "shards" and "NAME" in line.words:
        words = ["anna" if word == "folder" else word for word in words]
    words = ["random:resnet10t" if word.startswith("timm:") else word for word in words]  # no downloads
    parsed = parse(words)
    do([*words, *added(words)])
    if parsed.path == ("slurm", "pretrain") and not parsed.values["dry_run"]:
        given = [word for word in [parsed.values["config"], *(parsed.values["overrides"] or [])] if word]
        do(["pretrain", *given, *added(["pretrain", *given])])


def run_python(block: Block) -> None:
    text = block.text
    for said, done in PYTHON.items():
        text = text.replace(said, done)
    exec(compile(text, f"{block.page}:{block.line}", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", RUNNABLE)
@pytest.mark.usefixtures("small")
def test_a_page_is_done(page: str, here: Path) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    for block in (block for block in ALL if block.page == page):
        if block.kind == "python":
            run_python(block)
        elif block.kind == "yaml":
            name = re.match(r"# (\w+\.yaml)", block.text)
            assert name, block
            if name[1] == "mycluster.yaml":
                load(ClusterConfig, here / name[1])
            else:
                found = load(Benchmark, here / name[1])
                check_benchmark(replace(found, name=found.name or Path(name[1]).stem), name[1])
        for line in filter(is_ours, block.commands):
            execute(line)


def test_what_is_done_elsewhere_is_there() -> None:
    root = Path(__file__).parents[2]
    for place in (*ELSEWHERE.values(), *DONE_BY_OTHERS.values()):
        assert (root / place).exists(), place
    said = [" ".join([*line.words, *ours(line.words)]) for block in ALL for line in filter(is_ours, block.commands)]
    for words in ELSEWHERE:
        assert any(words in each for each in said), f"{words} is on no page any more"
