"""The error made for users: what was wrong, where, what to do. Commands print it as one line, without a traceback."""


class UserError(Exception):
    """Something the user can mend: an input, a file, a configuration. The message says what, where and how."""
