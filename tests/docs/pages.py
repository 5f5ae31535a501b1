"""Extract commands from the documents and parse them as the program does.

The rule, for README.md, SLURM.md, CONTRIBUTING.md and docs/:
- ```bash, and an indented block whose first word is a program: every line is a command (a backslash joins lines);
- ```python is executed, ```yaml is read as a configuration;
- ```text, a block without a language, and the indented blocks of `TEXT` are only read.
"""

import re
import shlex
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.cli_runner import command_module

from simfle.api.input_shards import is_data
from simfle.commands import main as table
from simfle.commands.main import app
from simfle.config.schema import PretrainConfig, load
from simfle.eval.config import EvalConfig
from simfle.slurm.config import ClusterConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / name for name in ("README.md", "SLURM.md", "CONTRIBUTING.md")), *ROOT.glob("docs/*.md")])
PROGRAMS = ("simfle", "python", "accelerate", "torchrun", "make", "pip", ".venv/bin/pip", "pytest", "pre-commit",
            "apt-get", ".")  # fmt: skip
TEXT = {"docs/method.md": "global_branch"}  # indented, but not commands
# Placeholders in synopses and their values; None: removed.
STANDS_FOR = {
    "NAME": "folder",
    "DIR": "path/to/faces",
    "FACES": "path/to/faces",
    "OUT": "shards/mine",
    "CONFIG": "configs/pretrain/faces_cpu.yaml",
    "RUN": "runs/mine",
    "BACKBONE": "random:resnet10t",
    "[options]": None,
    "[key=value": None,
    "...]": None,
    "...": None,
}


@dataclass(frozen=True)
class Block:
    """A block of a page. kind: bash, python, yaml or text; line: in the page, from 1."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def commands(self) -> "list[Line]":
        """Return the commands of a bash block."""
        joined = re.sub(r" *\\\n *", " ", self.text)
        parts = [part for line in joined.splitlines() for part in shell_parts(line)] if self.kind == "bash" else []
        return [Line(self.page, self.line, words) for words in parts]


@dataclass(frozen=True)
class Line:
    """Split a command line into words."""

    page: str
    line: int
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def shell_parts(line: str) -> list[list[str]]:
    """Return the commands of a line, split at &&, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def blocks(page: Path) -> list[Block]:
    """Return all blocks of a page in order."""
    name = str(page.relative_to(ROOT))
    found, lines = [], page.read_text().splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"(`{3,})(\w*)$", lines[number])
        start = number
        if fence:
            number = next(at for at in range(number + 1, len(lines)) if lines[at] == fence[1])
            found.append(Block(name, start + 1, fence[2] or "text", "\n".join(lines[start + 1 : number])))
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            while number + 1 < len(lines) and (lines[number + 1].startswith("    ") or not lines[number + 1].strip()):
                number += 1
            text = "\n".join(line[4:] for line in lines[start : number + 1]).strip()
            kind = "text" if text.startswith(TEXT.get(name, "\0")) else "bash"
            found.append(Block(name, start + 1, kind, text))
        number += 1
    return found


ALL = [block for page in PAGES for block in blocks(page)]
LINES = [line for block in ALL for line in block.commands]


def is_ours(line: Line) -> bool:
    """Return whether the line runs a command of this project, with any launcher."""
    return line.words[0] in ("simfle", "python", "accelerate", "torchrun")


def ours(words: list[str]) -> list[str]:
    """Return the words after `simfle` of one of our command lines."""
    known = [STANDS_FOR.get(word, word) for word in words]
    words = [word for word in known if word is not None]
    if words[0] == "simfle":
        return words[1:]
    if words[0] in ("accelerate", "torchrun"):
        words = ["python", *launched(words)]
    if words[1:3] == ["-m", "simfle"]:
        return words[3:]
    module = command_module(ROOT / words[1]).removeprefix("simfle.commands.")
    return [*path_of(module, table.COMMANDS), *words[2:]]


def launched(words: list[str]) -> list[str]:
    """Return the command that a launcher starts, after its own parser has read its options."""
    parser: ArgumentParser
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        parser, rest = get_args_parser(), words[1:]
    else:
        from accelerate.commands.launch import launch_command_parser

        assert words[1] == "launch"
        parser, rest = launch_command_parser(), words[2:]
    given = parser.parse_args(rest)
    return ["-m"] * bool(given.module) + [given.training_script, *given.training_script_args]


def path_of(module: str, entries: dict[str, Any]) -> list[str]:
    """Return the subcommand of a module below simfle.commands as words."""
    for name, entry in entries.items():
        if isinstance(entry, table.CommandGroup):
            if below := path_of(module, entry.entries):
                return [name, *below]
        elif entry.module == module:
            return [name]
    return []


WORDS = ("overrides", "words", "arguments")  # names of the commands' key=value parameters


@dataclass(frozen=True)
class Parsed:
    """A parsed command line: subcommand and parameters."""

    path: tuple[str, ...]
    values: dict[str, Any]

    def configure(self) -> None:
        """Read the named configuration and its key=value words, as the command does. Raises UserError."""
        config = self.values.get("config")
        given = [word for name in WORDS for word in self.values.get(name) or []]
        if config and self.path == ("pretrain",) and is_data(config):  # images or shards instead
            config = self.values["recipe"]
        if config and "=" in config:
            given, config = [config, *given], None
        if given and "=" not in given[0]:
            config = given.pop(0)
        schemas: dict[str, type] = dict.fromkeys(("pretrain", "plan", "bench", "slurm pretrain"), PretrainConfig)
        schemas |= {"quickstart": PretrainConfig, "evaluate": EvalConfig, "slurm eval": EvalConfig}
        schema = schemas.get(" ".join(self.path)) or schemas.get(self.path[0])
        if schema is None:
            assert not config, self
            assert not given, self
            return
        cluster = [word.removeprefix("cluster.") for word in given if word.startswith("cluster.")]
        load(ClusterConfig, None, cluster)
        load(schema, Path(config) if config else None, [word for word in given if not word.startswith("cluster.")])


def parse(words: list[str]) -> Parsed:
    """Parse the words after `simfle` with click. Raises click's UsageError for invalid ones."""
    import typer

    command: Any = typer.main.get_command(app())
    context, path = command.make_context("simfle", list(words)), []
    while hasattr(command, "resolve_command"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        path.append(name)
        context = command.make_context(name, rest, parent=context)
    return Parsed(tuple(path), context.params)
