"""One layer of a configuration, a YAML file or the words of a command line, held against its schema.

A schema is a dataclass whose fields `simfle.config.option` makes, or a dataclass of such. Nothing here knows which.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from shards.files import at_home, read_text
from simfle.errors import UserError
from simfle.words import QUOTES, parse_list, parse_text

# YAML takes 12:00:00 for 43200, but 0:15:00 for text
BASE_60 = re.compile(r"[-+]?([1-9]\d*(:[0-5]?\d)+|\d+(:[0-5]?\d)+\.\d*)")
REFERENCE = re.compile(r"\$\{\.*[A-Za-z_][\w.]*\}")  # ${train.seed}; OmegaConf could also read the environment
TILDE = re.compile(r"(?<![^=:@])~[^/=:@]*")  # ~ and ~name; in NAME=~/faces and KIND:NAME@~/weights.pth, too
TEXT = "tag:yaml.org,2002:str"
MOST_YAML = 1 << 20  # bytes
DEEPEST_YAML = 20
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_keys(schema: Any, layer: Any, place: str) -> None:
    """Refuse keys that `schema` does not have, and references to elsewhere. Raises UserError."""
    known = list(keys(schema))
    for key, value in _leaves(layer):
        _check_references(key, value, place)
        inner = [name for name in known if name.startswith(key + ".")]
        if inner and value is not None:
            raise UserError(f"config: {key}={value} in {place}: {key} has settings of its own, such as {inner[0]}")
        if key not in known and not inner and not key.startswith(_tables(schema)):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"config: unknown key {key!r} in {place}{hint}")


def complete(schema: Any, layer: Any) -> None:
    """Write out what is meant: a word's value, a list of one for a bare value, no keys for an empty group, ~."""
    from omegaconf import OmegaConf

    known = dict(fields(schema))
    for key, value in _leaves(layer):
        field = known.get(key)
        if field is not None and field.metadata.get("path"):
            value = _at_home(value)  # noqa: PLW2901
            OmegaConf.update(layer, key, value)
        if value is None and (field is None or field.type is str):  # a group whose lines are all comments, or val=
            OmegaConf.update(layer, key, {} if field is None else "")
        elif field is None:
            continue
        elif isinstance(value, str) and value in field.metadata.get("words", {}):
            OmegaConf.update(layer, key, field.metadata["words"][value])
        elif isinstance(value, str | int | float) and get_origin(field.type) is list and "${" not in str(value):
            OmegaConf.update(layer, key, [value])


def _at_home(value: Any) -> Any:
    """A path, or each of a list, with ~ as the home folder: a shell leaves it as it is after train.run=."""
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    if not isinstance(value, str) or "://" in value:
        return value
    return TILDE.sub(lambda found: str(at_home(found[0])), value)


def _leaves(layer: Any) -> list[tuple[str, Any]]:
    """Dotted names and values of a layer, as they are written."""
    from omegaconf import OmegaConf

    return list(flatten(cast(dict, OmegaConf.to_container(layer))).items())


def _tables(schema: Any) -> tuple[str, ...]:
    """How names begin that are the user's own: the keys of fields that are dictionaries."""
    return tuple(f"{name}." for name, field in fields(schema) if get_origin(field.type) is dict)


def unfit(schema: Any, layer: Any, error: Any) -> str:
    """What to say of a value that its field cannot take."""
    key = str(error.full_key).partition("[")[0]
    field, value = dict(fields(schema)).get(key), dict(_leaves(layer)).get(key)
    if field is None:
        return f"{str(error).splitlines()[0]} ({error.full_key})"
    if get_origin(field.type) is list:
        must = f"a list, each {KINDS[get_args(field.type)[0]]}" if isinstance(value, list) else "a list, such as [a,b]"
    else:
        must = KINDS.get(field.type, "names with values")
    return f"{key}={'' if value is None else value}; it must be {must}"


def _check_references(key: str, value: Any, place: str) -> None:
    """A value may refer to another key, but run nothing and read nothing from elsewhere. Raises UserError."""
    if "${" in REFERENCE.sub("", str(value)):
        raise UserError(
            f"config: {key}={value!r} in {place}: a value may refer to another key, as ${{train.seed}}, not to the "
            "environment or a function; write the value itself"
        )


def read_yaml(file: Path) -> str:
    """Read the text of a YAML file; refuse what expands or nests without end: a configuration needs neither.

    Raises:
        UserError, YAMLError, OSError.
    """
    import yaml

    if file.stat().st_size > MOST_YAML:
        raise UserError(f"config: {file} has more than {MOST_YAML} bytes; that is no configuration")
    text = read_text(file)
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"config: {file} uses the YAML alias *{event.anchor}; refer to a key, as ${{train.seed}}")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and BASE_60.fullmatch(event.value):
            raise UserError(f"config: {file}: YAML takes {event.value} for a number; write '{event.value}'")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_YAML:
            raise UserError(f"config: {file} is nested more than {DEEPEST_YAML} deep; that is no configuration")
    return text


def texts_as_written(schema: Any, text: str) -> str:
    """YAML in which each scalar of a text field is marked as a text: run: 007 means "007", not 7. Raises YAMLError."""
    import yaml

    types = {name: field.type for name, field in fields(schema)}
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return text
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        prefix, mapping = todo.pop()
        for name, node in mapping.value:
            key = f"{prefix}{name.value}"
            if isinstance(node, yaml.MappingNode):
                todo.append((f"{key}.", node))
            elif types.get(key) is str:
                _mark(node)
            elif types.get(key) == list[str]:
                for item in node.value if isinstance(node, yaml.SequenceNode) else (node,):
                    _mark(item)
    return str(yaml.serialize(root, allow_unicode=True))


def _mark(node: Any) -> None:
    """Make a scalar a text, but for one without a value."""
    if hasattr(node, "style") and node.tag not in ("tag:yaml.org,2002:null", TEXT) and isinstance(node.value, str):
        node.tag, node.style = TEXT, '"'


def typed(schema: Any, overrides: Sequence[str]) -> Any:
    """The layer of the command line; texts are taken as typed. Raises UserError: a word of it cannot be read."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    types = {name: field.type for name, field in fields(schema)}
    layer = OmegaConf.create()
    for text in overrides:
        key, _, value = text.partition("=")
        try:
            if types.get(key) is str:
                OmegaConf.update(layer, key, parse_text(value))
            elif types.get(key) == list[str] and value:
                OmegaConf.update(layer, key, parse_list(value))
            else:
                layer.merge_with_dotlist([text])
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, LookupError, RecursionError) as error:
            why = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"config: cannot read {text!r} on the command line ({why}); in a list, a text with brackets, commas "
                f'or quotes in it needs quotes of its own, such as "{QUOTES}"'
            ) from None
    return layer


def keys(schema: Any) -> Iterator[str]:
    """Dotted names of all leaf fields of a config dataclass."""
    return (name for name, _ in fields(schema))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def fields(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all leaf fields, and the fields."""
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from fields(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field
