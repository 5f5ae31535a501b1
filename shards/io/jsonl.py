"""Parse JSON from other programs, and JSON that a crash truncated."""

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import IO, Any, TypeVar

from shards.errors import UserError

T = TypeVar("T")
MAX_JSON = 4 << 20  # maximum bytes of one sample's JSON, which takes up to 30 times as much memory when parsed
MAX_LINE = 1 << 20  # maximum characters in one line of a list


def loads(text: str | bytes) -> Any:
    """Parse JSON like `json.loads`, but raise ValueError if the nesting is too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def loads_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError for anything else."""
    found = loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the text is wrong, not a type in the program
    return found


def split_lines(text: IO[str], most: int) -> Iterator[str]:
    """Yield the lines of a text file. Raises UserError for a line of more than `most` characters (possibly endless)."""
    while line := text.readline(most + 1):
        if len(line) > most:
            name = getattr(text, "name", "a file")
            raise UserError(f"{name}: a line has more than {most} characters. Fix: pass a file with one row per line.")
        yield line


def iter_valid_lines(text: str | bytes) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file with one object per line; skip invalid lines, such as a truncated last one."""
    for line in text.splitlines():
        try:
            yield loads_object(line)
        except ValueError:
            continue


def dataclass_from_json(kind: type[T], text: str | bytes) -> T:
    """Build a dataclass of int, str and list[str] from a JSON object. Raises ValueError for other fields or types."""
    found = loads_object(text)
    types = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    wrong = found.keys() ^ types.keys()
    wrong |= {name for name, value in found.items() if name in types and not _has_type(value, types[name])}
    if wrong:
        raise ValueError(f"{min(wrong)!r} is missing, unknown or has the wrong type")
    return kind(**found)


def _has_type(value: Any, kind: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is kind  # JSON true is not an int
