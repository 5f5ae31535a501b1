"""Words of a command line: texts are taken as typed, our own callers quote, printed commands can be pasted."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.source_kit import photo, write

from shards.errors import UserError
from simfle.config.overrides import format_override, parse_list, shell_line
from simfle.config.schema import PretrainConfig, load

pytestmark = pytest.mark.slow

ODD = [
    "exp #1",
    "1.10",
    "007",
    "2024_01_01",
    "yes",
    "null",
    "a: b",
    "a, b",
    "q [v2]",
    "it's",
    'say "x"',
    "grün ✓",
    "1e3",
]


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_taken_as_typed(text: str) -> None:
    made = load(
        PretrainConfig, None, [f"train.run_dir=runs/{text}", f"model.backbone={text}", f"data.shards=in/{text}"]
    )
    assert (made.train.run_dir, made.model.backbone, made.data.shards) == (f"runs/{text}", text, [f"in/{text}"])


def test_texts_of_a_list_are_taken_as_typed() -> None:
    words = "[exp #1, 1.10,007 ,2024_01_01,yes,a: b,'b, c',\"d]\",https://h/{000..9}.tar]"
    expected = ["exp #1", "1.10", "007", "2024_01_01", "yes", "a: b", "b, c", "d]", "https://h/{000..9}.tar"]
    assert load(PretrainConfig, None, [f"data.shards={words}"]).data.shards == expected
    assert load(PretrainConfig, None, ["data.shards=[]"]).data.shards == []


@pytest.mark.parametrize("text", [*ODD, "[x]", " ", "'q'", "a'b\"c", "${x", "tab\t", "\\", "{a,b}"])
def test_what_our_commands_write_is_read_back(text: str) -> None:
    assert parse_list(format_override("k", [text, "b", text]).partition("=")[2]) == [text, "b", text]
    if "${" not in text:
        made = load(
            PretrainConfig, None, [format_override("train.run_dir", text), format_override("data.shards", [text, "b"])]
        )
        assert (made.train.run_dir, made.data.shards) == (text, [text, "b"])


@pytest.mark.parametrize("word", ["data.shards=[a", "data.shards=['a]", "data.shards=['a'b]", "data.shards=[a,,b]"])
def test_a_list_that_cannot_be_read_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"cannot read .* on the command line"):
        load(PretrainConfig, None, [word])


def test_numbers_and_switches_are_still_typed() -> None:
    made = load(PretrainConfig, None, ["train.seed=7", "train.profile=yes", "optim.betas=[0.5,1e-1]"])
    assert (made.train.seed, made.train.profile, made.optim.betas) == (7, True, [0.5, 0.1])


def test_texts_of_a_file_are_taken_as_written(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {run_dir: 1.10, seed: 007}\ndata: {cache_dir: yes, shards: [2024_01_01, 007, no]}\n")
    made = load(PretrainConfig, file)
    assert (made.train.run_dir, made.train.seed, made.data.cache_dir) == ("1.10", 7, "yes")
    assert made.data.shards == ["2024_01_01", "007", "no"]


@pytest.mark.parametrize("name", ["my, q", "q [v2] #1", "it's grün"])
def test_the_next_command_can_be_pasted(name: str, tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / "faces" / f"{seed}.jpg", photo(seed))
    out = tmp_path / name
    command = [sys.executable, "-m", "simfle", "shards", "build", "folder", str(tmp_path / "faces"), str(out)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    place = next(number for number, line in enumerate(told) if line.startswith("next: "))
    assert shlex.split(told[place].removeprefix("next: ")) == ["simfle", "shards", "verify", str(out)]
    pasted = told[place].removeprefix("next: ")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    verified = subprocess.run(["/bin/sh", "-c", pasted], env=environment, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr
    words = shlex.split(told[place + 1])
    made = load(PretrainConfig, None, words[3:])
    assert made.data.shards == [str(out)]
    assert made.train.run_dir == str(Path("runs") / name)
    assert shell_line(*words) == told[place + 1].strip()
