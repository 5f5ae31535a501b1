"""tools/build_shards.py: convert face images in common formats to shards."""

from functools import cache

import typer

from simfle.commands import build_source
from simfle.commands.app import run


@cache
def commands() -> typer.Typer:
    """Return the app with all subcommands."""
    from simfle.commands.build_generic import add_generic
    from simfle.commands.build_known import add_known

    add_generic()
    add_known()
    return build_source.app


def main() -> None:
    """Run the command line."""
    run(commands())
