"""What every command line shares: an app with plain help, and one line instead of a traceback for a user's error."""

import errno
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from shards.files import RefusedFileError
from shards.printable import printable
from simfle.errors import AgreedError, PeersMissing, UserError
from simfle.terminal import plain_warnings

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # full or read-only: no bug of ours in any command
# A place that is of another kind than it should be, or of somebody else: no bug either.
PLACE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


def echo(text: str, err: bool = False) -> None:
    """Print a line; what it quotes may come from anywhere, so control characters are escaped."""
    typer.echo(printable(text), err=err)


def writable(out: Path | None) -> Path | None:
    """Before hours of work: its folder is made. Raises UserError where a file cannot be written to `out`."""
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
        if out.is_dir() or not os.access(out.parent, os.W_OK):
            raise UserError(f"--out: {out} cannot be written; name a file in a folder of yours")
    return out


Figures = Annotated[Path | None, typer.Option(help="JSON file for the figures", callback=writable)]


def command(function: Callable[..., None]) -> Callable[[], None]:
    """Turn a typed function into the main() of a command line with that one command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(function)
    return lambda: run(app)


def run(app: typer.Typer) -> None:
    """Run a typer app; a UserError, a full disk or lost peers become one line on stderr and exit code 1, Ctrl-C 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without these letters, or a file name that is no text
        sys.stdout.reconfigure(errors="backslashreplace")
    plain_warnings()
    try:
        app()
    except (UserError, PeersMissing) as error:
        if isinstance(error, AgreedError) and not error.said_here:
            time.sleep(1)  # torchrun ends the others when the first leaves: the main process speaks before that
        else:
            echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        place = error.filename2 or error.filename  # of a rename what was to be
        if (error.errno in PLACE or isinstance(error, RefusedFileError)) and place:
            echo(f"error: {place}: {error.strerror}; name another place, or mend this one", err=True)
            sys.exit(1)
        if error.errno not in DISK:
            raise
        where = f" ({place})" if place else ""
        echo(f"error: {error.strerror}{where}; make room or write elsewhere, and run it again", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        echo("interrupted", err=True)
        sys.exit(130)
