"""Create subcommands of `simfle shards build` from functions that open a corpus."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from simfle.commands.shards.build_local import execute
from simfle.commands.shards.build_options import BuildOptions, SourceInput, typer_option
from simfle.commands.shards.build_remote import Url, check_output, execute_remote, fetch, parse_path_or_url
from simfle.errors import UserError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Convert face images to shards: tar + index + manifest. Every image is decoded once; rejected ones are "
    "counted and listed. The same input gives the same bytes; rerun an interrupted build to resume it.",
)


def source(function: Callable[..., SourceInput]) -> Callable[..., SourceInput]:
    """Register a function as a subcommand: the function's arguments, then OUT, then the common options."""
    own = inspect.signature(function).parameters
    shared = dataclasses.fields(BuildOptions)

    @wraps(function)
    def command(**values: Any) -> None:
        common = BuildOptions(**{item.name: values[item.name] for item in shared})
        out = values["out"]
        if isinstance(out, Url):
            check_output(out)  # checked before any download
        for item in arguments:
            _require_path(item, values[item.name])
        given = {name: fetch(item, common.work) if isinstance(item := values[name], Url) else item for name in own}
        (execute_remote if isinstance(out, Url) else execute)(out, function(**given), common)

    arguments = [_place(item) for item in own.values() if item.default is item.empty]
    options = [item for item in own.values() if item.default is not item.empty]
    out = Annotated[
        Path, typer.Argument(metavar="OUT", help="folder of shards to create, or its URL", parser=parse_path_or_url)
    ]
    positional = [*arguments, inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, annotation=out)]
    extra = [_parameter(item) for item in shared]
    keyword = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in (*positional, *options, *extra)]
    command.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in keyword}
    app.command(function.__name__)(command)
    return function


def _require_path(item: inspect.Parameter, value: object) -> None:
    """Raise UserError if a path argument names nothing, before a source reports it as a file of a wrong kind."""
    if not isinstance(value, Path):
        return
    try:
        value.lstat()
    except (FileNotFoundError, NotADirectoryError):
        name = get_args(item.annotation)[1].metavar or item.name.upper()
        raise UserError(f"{name}={value}: does not exist. Fix: check the path.") from None
    except OSError:
        return  # the source reports the reason


def _place(item: inspect.Parameter) -> inspect.Parameter:
    """Let a path argument also accept a URL."""
    kind, about = get_args(item.annotation)
    if kind is Path:
        about.parser = parse_path_or_url
    return item


def _parameter(item: "dataclasses.Field[Any]") -> inspect.Parameter:
    """Convert a field of BuildOptions to a parameter of a subcommand."""
    kind, about = item.metadata["kind"], typer_option(item.name, item.metadata["help"], item.default)
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=Annotated[kind, about]
    )
