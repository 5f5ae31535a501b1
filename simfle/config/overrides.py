"""Parse key=value arguments of a command line: text is taken as typed, lists are split at commas, both may be quoted.

A folder may be called `exp #1`, `007` or `yes`: YAML would parse these names as a comment, a number and a truth value.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

EXAMPLE = "cluster.extra_sbatch=['exclude=n[1-2]']"
# One quoted text as in YAML: '' is a quote within single quotes, and a backslash escapes within double quotes.
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
LIST_SYNTAX = re.compile(r"[\[\]\x00]")  # invalid in an unquoted item of a list
SYNTAX = re.compile(r"^[\s'\"\[~]|\s$|\x00|\$\{")  # matches texts that must be quoted to be read back unchanged
ITEM_SYNTAX = re.compile(r"[\[\]{},]|^$")


def parse_text(value: str) -> str:
    """Return the text of a value without its quotes. Raises ValueError if the value is invalid."""
    if "\0" in value:
        raise ValueError("a zero byte")
    return _unquoted(value) if QUOTED.fullmatch(value) else value


def parse_list(value: str) -> list[str]:
    """Return the items of a list such as [a, 'b, c'], or a list of one text. Raises ValueError for invalid syntax."""
    inner = value.strip()
    if not inner.startswith("["):
        return [parse_text(value)]
    if len(inner) < 2 or not inner.endswith("]"):
        raise ValueError("a list without a closing bracket")
    rest, items = inner[1:-1].strip(), []
    while rest:
        item, rest = _first(rest)
        items.append(item)
    return items


def _first(rest: str) -> tuple[str, str]:
    """Return the first item of a list, and the text after its comma."""
    quoted = QUOTED.match(rest)
    if quoted is None and rest[0] in "'\"":
        raise ValueError("a quote that is not closed")
    end = quoted.end() if quoted else 0
    item, _, after = rest[end:].partition(",")
    if quoted:
        if item.strip():
            raise ValueError(f"{item.strip()!r} after a closing quote")
        return _unquoted(quoted[0]), after.strip()
    item = item.strip()
    if not item or LIST_SYNTAX.search(item) or item.count("{") != item.count("}"):
        raise ValueError("an unquoted item that is empty or contains a bracket" if item else "an empty item")
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

        return str(yaml.safe_load(text))  # YAML supports more escapes than JSON


def format_override(key: str, value: Any) -> str:
    """Format `key=value` so that parsing returns `value`: a text, a path, or a list of these. Quote only if needed."""
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
