"""Messages of the library on the terminal of a command."""

import logging

from simfle.terminal import plain_handler


def show_logs(level: int = logging.INFO) -> None:
    """Print what `simfle` and `shards` log, one plain line each, to stderr."""
    handler = plain_handler()
    for name in ("simfle", "shards"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        if not logger.handlers:
            logger.addHandler(handler)
