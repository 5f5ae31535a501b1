"""Write messages to stderr. Control characters are escaped, because messages quote untrusted text."""

import logging
import sys
import warnings
from typing import Any

from shards.printable import printable
from shards.redact import redact_secrets


class Plain(logging.Formatter):
    """Formatter of messages without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(str(redact_secrets(super().format(record))))


def plain_handler() -> logging.Handler:
    """Return a handler that writes escaped messages to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain("%(message)s"))
    return handler


def log_to_stderr() -> None:
    """Print log messages of all libraries, one per line, unless logging is already configured."""
    logging.basicConfig(level=logging.INFO, handlers=[plain_handler()])


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{printable(str(redact_secrets(text)))}\n")


def plain_warnings() -> None:
    """Show Python's warnings, which quote untrusted files, without control characters."""
    if warnings.formatwarning is not _plain_warning:
        warnings.formatwarning = _plain_warning


_python_format = warnings.formatwarning


def _plain_warning(*about: Any, **more: Any) -> str:
    return printable(_python_format(*about, **more))
