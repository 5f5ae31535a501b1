"""Make text from elsewhere safe to show: labels, keys, names of files, words of servers."""

import re

# Control characters but tab and line feed, and those that turn the direction of text or end lines unseen.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f]")


def printable(text: str) -> str:
    r"""Write control and bidi characters as \x1b or \u202e: a terminal would obey them, a reader be deceived."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Do as `printable`, and keep the text on one line, so that no name can pretend to be a message of ours."""
    return printable(text.replace("\n", "\\n"))
