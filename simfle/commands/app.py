"""What every command line shares: an app with plain help, and one line instead of a traceback for a user's error."""

import errno
import sys
import time
from collections.abc import Callable

import typer

from simfle.errors import AgreedError, UserError

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # full or read-only: no bug of ours in any command


def command(function: Callable[..., None]) -> Callable[[], None]:
    """Turn a typed function into the main() of a command line with that one command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(function)
    return lambda: run(app)


def run(app: typer.Typer) -> None:
    """Run a typer app; a UserError or a full disk becomes one line on stderr and exit code 1, Ctrl-C exit code 130."""
    try:
        app()
    except UserError as error:
        if isinstance(error, AgreedError) and not error.said_here:
            time.sleep(1)  # torchrun ends the others when the first leaves: the main process speaks before that
        else:
            typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        typer.echo(f"error: {error.strerror}{where}; make room or write elsewhere, and run it again", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
