"""Shared code of every command: a plain Typer app, and one-line errors for users instead of tracebacks."""

import errno
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from shards.io.atomic import RefusedFileError
from shards.io.open_files import TOO_MANY, describe_limit
from shards.printable import printable
from simfle.errors import CollectiveError, PeerLostError, UserError
from simfle.runtime.logs import plain_warnings

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a full or read-only disk is not a bug in a command
# A path of the wrong kind or without permission is not a bug, either.
PLACE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


def echo(text: str, err: bool = False) -> None:
    """Print a line. Control characters are escaped, because quoted text is untrusted."""
    typer.echo(printable(text), err=err)


def writable(out: Path | None) -> Path | None:
    """Create the parent folder of `out` before a long computation. Raises UserError if `out` cannot be written."""
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out={out}: cannot be written ({error.strerror}). Fix: choose another file.") from None
        if out.is_dir() or not os.access(out.parent, os.W_OK):
            raise UserError(f"--out={out}: cannot be written. Fix: name a file in a writable folder.")
    return out


Figures = Annotated[Path | None, typer.Option(help="JSON file for the results", callback=writable)]


def command(function: Callable[..., None]) -> Callable[[], None]:
    """Convert a typed function to the main() of a single-command program."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(function)
    return lambda: run(app)


def run(app: typer.Typer) -> None:
    """Run a Typer app. Expected errors (UserError, a full disk, lost peers) print one line on stderr and exit with
    code 1; Ctrl-C exits with code 130."""
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # raised for characters outside the terminal's encoding, and for undecodable file names
        sys.stdout.reconfigure(errors="backslashreplace")
    plain_warnings()
    try:
        app()
    except (UserError, PeerLostError) as error:
        if isinstance(error, CollectiveError) and not error.is_reporter:
            time.sleep(1)  # torchrun stops all ranks when the first exits: let the main process report before
        else:
            echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        place = error.filename2 or error.filename  # the target of a rename
        if (error.errno in PLACE or isinstance(error, RefusedFileError)) and place:
            echo(f"error: {place}: {error.strerror}. Fix: choose another path, or correct this one.", err=True)
            sys.exit(1)
        if error.errno in TOO_MANY:
            echo(f"error: {describe_limit()}", err=True)
            sys.exit(1)
        if error.errno not in DISK:
            raise
        where = f" ({place})" if place else ""
        echo(f"error: {error.strerror}{where}. Fix: free space or write elsewhere, and rerun the command.", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        echo("interrupted", err=True)
        sys.exit(130)
