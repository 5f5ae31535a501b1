"""Error for users: names the problem, its place and its fix. Commands print it as one line without a traceback."""

from shards.printable import printable
from shards.redact import redact_secrets


class UserError(Exception):
    """Error that the user can fix: an input, a file, a configuration. The message names problem, place and fix.

    The text contains no URL secrets and no control characters, no matter which code prints or records it.
    """

    def __str__(self) -> str:
        return printable(str(redact_secrets(super().__str__())))
