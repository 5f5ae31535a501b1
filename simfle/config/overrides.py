"""Parse key=value words of a command line: texts are taken as typed, lists are split at commas, both may be quoted.

A folder may be called `exp #1`, `007` or `yes`: YAML would parse these names as a comment, a number and a truth value.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

EXAMPLE = "cluster.extra_sbatch=['exclude=n[1-2]']"
# One text in quotes, as in YAML: within single quotes '' is a quote, within double quotes a backslash escapes.
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
LIST_SYNTAX = re.compile(r"[\[\]\x00]")  # in an item of a list without quotes
SYNTAX = re.compile(r"^[\s'\"\[~]|\s$|\x00|\$\{")  # in a text that has to be quoted to be read back as it is
ITEM_SYNTAX = re.compile(r"[\[\]{},]|^$")


def parse_text(value: str) -> str:
    """Return the text of a value without the quotes around it. Raises ValueError."""
    if "\0" in value:
        raise ValueError("a zero byte")
    return _unquoted(value) if QUOTED.fullmatch(value) else value


def parse_list(value: str) -> list[str]:
    """Return the texts of a list such as [a, 'b, c']; for any other text, a list of that text. Raises ValueError."""
    inner = value.strip()
    if not inner.startswith("["):
        return [parse_text(value)]
    if len(inner) < 2 or not inner.endswith("]"):
        raise ValueError("a list without its end")
    rest, items = inner[1:-1].strip(), []
    while rest:
        item, rest = _first(rest)
        items.append(item)
    return items


def _first(rest: str) -> tuple[str, str]:
    """Return the first item of a list, and the text after its comma."""
    quoted = QUOTED.match(rest)
    if quoted is None and rest[0] in "'\"":
        raise ValueError("a quote without its end")
    end = quoted.end() if quoted else 0
    item, _, after = rest[end:].partition(",")
    if quoted:
        if item.strip():
            raise ValueError(f"{item.strip()!r} behind a quote")
        return _unquoted(quoted[0]), after.strip()
    item = item.strip()
    if not item or LIST_SYNTAX.search(item) or item.count("{") != item.count("}"):
        raise ValueError("an item without quotes that is empty or holds a bracket" if item else "an empty item")
    return item, after.strip()


def _unquoted(text: str) -> str:
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    if "\\" not in text:
        return text[1:-1]
    try:
        return str(json.loads(text))
    except ValueError:
        import yaml

        return str(yaml.safe_load(text))  # which knows more escapes


def format_override(key: str, value: Any) -> str:
    """Format `key=value` so that it parses to `value`, a text, a path or a list of them; quote only where necessary."""
    if not isinstance(value, list | tuple):
        text = str(value)
        return f"{key}={_double(text) if SYNTAX.search(text) else text}"
    items = (_double(text) if SYNTAX.search(text) or ITEM_SYNTAX.search(text) else text for text in map(str, value))
    return f"{key}=[{','.join(items)}]"


def _double(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def shell_line(*words: Any) -> str:
    """Format a command so that it can be pasted into a shell; a path that begins with - does not become an option."""
    return shlex.join(
        f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words
    )
