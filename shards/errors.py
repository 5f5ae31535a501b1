"""The error made for users: what was wrong, where, what to do. Commands print it as one line, without a traceback."""

from shards.printable import printable


class UserError(Exception):
    """Something the user can mend: an input, a file, a configuration. The message says what, where and how."""

    def __str__(self) -> str:
        return printable(super().__str__())
