"""Check the values of a configuration against the limits that its fields declare.

`config_field(..., min=1)` declares the limits of one field; `validate` is the only code that checks them, and
docs/configuration.md is generated from them. A rule that involves several fields, files or networks is a function of
the package that uses the fields.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from simfle.errors import UserError

COUNTS = {2: "two", 3: "three"}  # lengths of lists in messages


@dataclass(frozen=True)
class Limits:
    """Limits of the values that a field accepts.

    min, max: inclusive bounds of a number. above, below: exclusive bounds. choices: all accepted values. nonempty: at
    least one character or item. In a list, bounds and choices apply to each item. length: number of items. ascending:
    no item is smaller than the item before. distinct: no item occurs twice.
    rule: condition that involves more than this field. It is only text for the page: the code that uses the field
    checks it.
    """

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    nonempty: bool = False
    length: int | None = None
    ascending: bool = False
    distinct: bool = False
    rule: str = ""

    def allow(self, value: Any) -> bool:
        """Return whether `value`, a finite number, a text or a list of them, is within the limits."""
        if self.nonempty and not value:
            return False
        if not isinstance(value, list | tuple):
            return self._allow_one(value)
        return (
            self.length in (None, len(value))
            and all(map(self._allow_one, value))
            and not (self.ascending and list(value) != sorted(value))
            and not (self.distinct and len(set(value)) < len(value))
        )

    def _allow_one(self, value: Any) -> bool:
        return (
            (not self.choices or value in self.choices)
            and (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def describe_limits(field: Any) -> str:
    """Describe the limits of a dataclass field, such as "at least 1", "auto, cpu or cuda", or "" if it has none."""
    limits: Limits = field.metadata["limits"]
    names = _value_names(field)
    *most, last = [names.get(value, str(value)) for value in limits.choices] or [""]
    one = f"{', '.join(most)} or {last}" if most else last or _bounds(limits)
    if get_origin(field.type) is not list:
        return one or ("a non-empty text" if limits.nonempty else "")
    count = COUNTS[limits.length] if limits.length else "one or more" if limits.nonempty else ""
    order = "distinct" if limits.distinct else "ascending" if limits.ascending else ""
    if not (count or order or one):
        return ""
    items = "texts" if get_args(field.type) == (str,) else "numbers"
    return " ".join(word for word in (count, order, items) if word) + (f", each {one}" if one else "")


def _bounds(limits: Limits) -> str:
    if limits.min is not None and limits.max is not None:
        return f"{limits.min} to {limits.max}"
    words = (("at least", limits.min), ("above", limits.above), ("at most", limits.max), ("below", limits.below))
    return ", ".join(f"{word} {bound}" for word, bound in words if bound is not None)


def validate(config: Any, group: str = "", unused: Collection[str] = ()) -> None:
    """Raise UserError for the first value that is outside its field's limits, NaN or infinite.

    Args:
        config: instance of a schema or of one of its groups.
        group: dotted name of `config` in its schema, such as model.
        unused: dotted names of fields and groups that this configuration does not use; they are only checked for NaN
            and infinity.

    Raises:
        UserError: If a value is out of its limits, NaN or infinite. The message names field, value and limits.
    """
    for name, field, value in _values(config, f"{group}." if group else ""):
        numbers = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise _refusal(name, field, value, "a finite number" if numbers is not value else "finite numbers")
        if not _is_unused(name, unused) and not field.metadata["limits"].allow(value):
            raise _refusal(name, field, value, describe_limits(field))


def _values(config: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted name, field and value of all leaves."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def _is_unused(name: str, unused: Collection[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in unused)


def _refusal(name: str, field: Any, value: Any, accepted: str) -> UserError:
    """Return the error for an invalid value."""
    shown = repr(value) if isinstance(value, str) else str(value)
    return UserError(f"{name}={shown}: must be {accepted}. Fix: set {name}={_suggestion(field, value)}.")


def _suggestion(field: Any, value: Any) -> str:
    """Return an accepted value as the user would type it: the nearest choice or bound, otherwise the default."""
    limits: Limits = field.metadata["limits"]
    default = field.default_factory() if field.default is dataclasses.MISSING else field.default
    if limits.choices and isinstance(value, str):
        found: Any = (*difflib.get_close_matches(value, limits.choices, n=1), default)[0]
    elif isinstance(value, int | float) and limits.min is not None and value < limits.min:
        found = limits.min
    elif isinstance(value, int | float) and limits.max is not None and limits.max < value < math.inf:
        found = limits.max
    else:
        found = default
    if isinstance(found, list):
        return f"[{','.join(map(str, found))}]"
    return _value_names(field).get(found, str(found))


def _value_names(field: Any) -> Mapping[Any, str]:
    """Return the names of values, such as auto for -1."""
    return {value: name for name, value in field.metadata["aliases"].items()}


def check_distinct_places(field: str, places: list[str]) -> None:
    """Raise UserError if shards are named twice: their samples would count twice."""
    seen: dict[str, str] = {}
    for place in places:
        real = place.rstrip("/") if "://" in place else os.path.realpath(place)
        if real in seen:
            both = place if place == seen[real] else f"{seen[real]} and {place} are the same folder, which"
            raise UserError(f"{field}: {both} is named twice, and each sample would count twice. Fix: name it once.")
        seen[real] = place
