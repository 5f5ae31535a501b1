"""The error made for users: what was wrong, where, what to do. Commands print it as one line, without a traceback."""

from shards.printable import printable
from shards.redact import redacted


class UserError(Exception):
    """Something the user can mend: an input, a file, a configuration. The message says what, where and how.

    Its text holds no secrets of URLs and no control characters, whatever prints or records it.
    """

    def __str__(self) -> str:
        return printable(str(redacted(super().__str__())))
