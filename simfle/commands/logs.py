"""Print the library's log messages on a command's terminal."""

import logging

from simfle.runtime.logs import plain_handler


def show_logs(level: int = logging.INFO) -> None:
    """Print log records of `simfle` and `shards` to stderr, one plain line each."""
    handler = plain_handler()
    for name in ("simfle", "shards"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not logger.handlers:
            logger.addHandler(handler)
