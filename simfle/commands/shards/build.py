"""`simfle shards build`: convert face images in common formats to shards."""

from functools import cache

import typer

from simfle.commands.app import run
from simfle.commands.shards import build_source


@cache
def commands() -> typer.Typer:
    """Return the app with all subcommands."""
    from simfle.commands.shards.build_corpus import add_known
    from simfle.commands.shards.build_generic import add_generic

    add_generic()
    add_known()
    return build_source.app


def main() -> None:
    """Run the command line."""
    run(commands())
