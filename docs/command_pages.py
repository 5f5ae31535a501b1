"""Pages of the site about commands, one per command, from the texts of its own `--help`."""

import html
import re
from collections.abc import Iterator
from typing import Any

import typer

from simfle.commands.main import app

# Every source of shards has the options of `folder`: the search finds them there once.
SEARCHED = "folder"


def pages() -> dict[str, str]:
    """Return the Markdown of each page by its name: `shards-verify.md` for `simfle shards verify`."""
    return {_name(context): "\n".join(_page(command, context)).rstrip() + "\n" for command, context in _below(*_root())}


def listing() -> str:
    """Return a table of all commands with links; the sources of `shards build` are on its page."""
    commands = [(command, context) for command, context in _below(*_root()) if not _is_source(context)]
    return "\n".join(_table_of_commands(commands, "commands/"))


def _root() -> tuple[Any, Any]:
    root: Any = typer.main.get_command(app())
    return root, root.make_context("simfle", [], resilient_parsing=True)


def _below(group: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the commands below a group, at any depth, each with its context."""
    for command, inner in _subcommands(group, context):
        yield command, inner
        if _is_group(command):
            yield from _below(command, inner)


def _page(command: Any, context: Any) -> Iterator[str]:
    if _is_source(context) and context.info_name != SEARCHED:
        yield "---\nsearch: {exclude: true}\n---"
    yield f"# {context.command_path}\n"
    for paragraph in (command.help or "").split("\n\n"):
        example = re.match(r"For example: (simfle .*)", paragraph, re.DOTALL)
        if example:
            yield f"For example:\n\n```text\n{' '.join(example[1].split())}\n```\n"
        else:
            yield f"{_escaped(paragraph)}\n"
    yield f"Usage:\n\n```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    if _is_group(command):
        yield from ("## Commands\n", *_table_of_commands(list(_subcommands(command, context))), "")
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        parameters = [p for p in command.get_params(context) if p.param_type_name == kind and p.name != "help"]
        records = [record for parameter in parameters if (record := parameter.get_help_record(context))]
        if records:
            yield f"## {title}\n"
            yield from (f"`{name}`\n:   {_escaped(text)}\n" for name, text in records)


def _table_of_commands(commands: list[tuple[Any, Any]], folder: str = "") -> Iterator[str]:
    yield "| command | what it does |\n|---|---|"
    for command, context in commands:
        name = " ".join(context.command_path.split()[1:]) if folder else context.info_name
        yield f"| [`{name}`]({folder}{_name(context)}) | {_escaped((command.help or '').split(chr(10) * 2)[0])} |"


def _subcommands(group: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield command, type(context)(command, info_name=name, parent=context)


def _is_group(command: Any) -> bool:
    return hasattr(command, "list_commands")


def _is_source(context: Any) -> bool:
    return context.command_path.startswith("simfle shards build ")


def _name(context: Any) -> str:
    return "-".join(context.command_path.split()[1:]) + ".md"


def _escaped(text: str) -> str:
    """Return plain text as one line of Markdown, with links to the pages of docs/ that it names."""
    text = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[docs/\1](../\1)", text)
