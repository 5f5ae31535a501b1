"""JSON that others wrote, or that a crash cut short."""

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import IO, Any, TypeVar

from shards.errors import UserError

T = TypeVar("T")
MOST_TOLD = 4 << 20  # bytes of what is told of one sample: parsed, a text takes up to thirty times its size
MOST_LINE = 1 << 20  # characters of a line of a list


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, for which too deep a nesting is an error in the text like any other. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - of the text, not of a program
    return found


def lines_of(text: IO[str], most: int) -> Iterator[str]:
    """The lines of a text file. Raises UserError for one of more than `most` characters: it may have no end."""
    while line := text.readline(most + 1):
        if len(line) > most:
            name = getattr(text, "name", "a file")
            raise UserError(f"{name}: a line has more than {most} characters. Fix: give a file with a line a row")
        yield line


def whole_lines(text: str | bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that has one in each line; any other line is passed over."""
    for line in text.splitlines():
        try:
            yield parse_object(line)
        except ValueError:
            continue


def build(kind: type[T], text: str | bytes) -> T:
    """A dataclass of int, str and list[str] from a JSON object. Raises ValueError: other fields, other types."""
    found = parse_object(text)
    types = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    wrong = found.keys() ^ types.keys()
    wrong |= {name for name, value in found.items() if name in types and not _is(value, types[name])}
    if wrong:
        raise ValueError(f"{min(wrong)!r} is missing, unknown or of another type")
    return kind(**found)


def _is(value: Any, kind: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is kind  # true is no number
