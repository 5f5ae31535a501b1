"""The program accepts every command line on every page: its options, its configuration, its keys."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tomllib
import typer
from docs.pages import ALL, LINES, PAGES, PROGRAMS, ROOT, Line, is_ours, ours, parse

from simfle.config.schema import PretrainConfig, field_help
from simfle.errors import UserError
from simfle.eval.config import EvalConfig
from simfle.eval.data.benchmarks import Benchmark
from simfle.slurm.config import ClusterConfig

# The example corpus of docs/extending.md is built by the test that runs that page.
OURS = [line for line in LINES if is_ours(line) and "atelier" not in line.words]
OTHERS = [line for line in LINES if not is_ours(line)]
REFUSED: type = typer.BadParameter.__mro__[1]  # click's UsageError, wherever typer stores its click
KNOWN = {*field_help(PretrainConfig), *field_help(EvalConfig), *field_help(Benchmark)} | {
    f"cluster.{k}" for k in field_help(ClusterConfig)
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_is_something_to_type_on_most_pages() -> None:
    assert len(OURS) > 60
    assert {block.page for block in ALL if block.commands} >= {"README.md", "SLURM.md", "docs/ten-minutes.md"}


def test_every_line_starts_with_a_program_that_is_known() -> None:
    for line in LINES:
        assert line.words[0] in PROGRAMS, line


@pytest.mark.parametrize("line", OURS, ids=str)
def test_ours_are_taken(line: Line) -> None:
    found = parse(ours(line.words))
    found.configure()


@pytest.mark.parametrize("line", OTHERS, ids=str)
def test_others_are_there(line: Line) -> None:
    """Check make targets, packages of this project and test files."""
    program, *words = line.words
    if program == "make":
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif program == "pytest":
        assert (ROOT / words[0]).is_file()
    elif program.endswith("pip"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install"
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
            assert extra in extras
    else:
        assert line.words in (
            [".", ".venv/bin/activate"],
            ["apt-get", "install", "-y", *words[2:]],
            ["pre-commit", "install"],
        )


def test_fields_that_are_named_in_passing_exist() -> None:
    """Check `train.micro_batch=auto` and similar text anywhere."""
    rooms = {name.split(".")[0] for name in KNOWN if "." in name} - {"linear", "landmarks", "fast", "scratch"}
    seen = 0
    for page in PAGES:
        for code in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", page.read_text()):
            if code.split(".")[0] in rooms and not re.search(
                r"\.(py|md|yaml|json|jsonl|html|npz|png|tar|safetensors)$", code
            ):
                assert code in KNOWN or any(name.startswith(f"{code}.") for name in KNOWN), (page.name, code)
                seen += 1
    assert seen > 40


@pytest.mark.parametrize(
    "words",
    ["pretrain --proceses 2", "shards bild folder a b", "export", "pretrain trian.steps=1", "embed a b",
     "pretrain configs/pretrain/face_cpu.yaml", "slurm pretrain cluster.nods=2", "evaluate sizes=3"],
)  # fmt: skip
def test_what_the_program_would_refuse_is_refused(words: str) -> None:
    """Check that the check itself can fail."""
    with pytest.raises((UserError, REFUSED), match=r"did you mean|No such|Missing|unknown key"):
        parse(shlex.split(words)).configure()
