"""Write messages to stderr. What they quote may come from anywhere, so control characters are escaped."""

import logging
import sys
import warnings
from typing import Any

from shards.printable import printable
from shards.redact import redacted


class Plain(logging.Formatter):
    """Format a message without anything that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(str(redacted(super().format(record))))


def plain_handler() -> logging.Handler:
    """Make a handler that writes plain messages to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain("%(message)s"))
    return handler


def log_to_stderr() -> None:
    """Print what any library logs, one plain message each, unless the process logs already."""
    logging.basicConfig(level=logging.INFO, handlers=[plain_handler()])


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{printable(str(redacted(text)))}\n")


def plain_warnings() -> None:
    """Show Python's warnings, which quote files of others, without anything that a terminal would obey."""
    if warnings.formatwarning is not _plain_warning:
        warnings.formatwarning = _plain_warning


_python_format = warnings.formatwarning


def _plain_warning(*about: Any, **more: Any) -> str:
    return printable(_python_format(*about, **more))
