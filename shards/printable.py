"""Make untrusted text safe to show: labels, keys, file names, server messages."""

import re

# Control characters except tab and line feed, and characters that change the text direction or end lines invisibly.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")


def printable(text: str) -> str:
    r"""Write control and bidi characters as \x1b or \u202e: terminals execute them, or they mislead the reader."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Escape like `printable`, and line feeds too, so that a name cannot imitate a message of the program."""
    return printable(text.replace("\n", "\\n"))
