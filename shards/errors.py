"""The error for users: what is wrong, where, and how to fix it. Commands print it as one line without a traceback."""

from shards.printable import printable
from shards.redact import redact_secrets


class UserError(Exception):
    """A problem that the user can fix: an input, a file, a configuration. The message says what, where and how.

    Its text contains no URL secrets and no control characters, regardless of what prints or records it.
    """

    def __str__(self) -> str:
        return printable(str(redact_secrets(super().__str__())))
