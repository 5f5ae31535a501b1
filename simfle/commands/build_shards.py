"""tools/build_shards.py: faces as their users have them -> shards."""

from functools import cache

import typer

from simfle.commands import build_source
from simfle.commands.app import run


@cache
def commands() -> typer.Typer:
    """The app with all subcommands."""
    from simfle.commands.build_generic import add_generic
    from simfle.commands.build_known import add_known

    add_generic()
    add_known()
    return build_source.app


def main() -> None:
    """The command line."""
    run(commands())
