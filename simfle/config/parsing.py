"""Check one configuration layer (a YAML file or the command line) against its schema.

A schema is a dataclass whose fields are created by `simfle.config.schema.config_field`, or a dataclass of such
dataclasses.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from shards.io.atomic import expand_home, read_text
from simfle.config.key_aliases import nearest_key
from simfle.config.overrides import EXAMPLE, parse_list, parse_text
from simfle.errors import UserError

# YAML parses 12:00:00 as 43200, but 0:15:00 as text
BASE_60 = re.compile(r"[-+]?([1-9]\d*(:[0-5]?\d)+|\d+(:[0-5]?\d)+\.\d*)")
REFERENCE = re.compile(r"\$\{\.*[A-Za-z_][\w.]*\}")  # ${train.seed}; OmegaConf could also read environment variables
TILDE = re.compile(r"(?<![^=:@])~[^/=:@]*")  # ~ and ~name, also in NAME=~/faces and KIND:NAME@~/weights.pth
TEXT = "tag:yaml.org,2002:str"
MAX_YAML = 1 << 20  # bytes
MAX_YAML_DEPTH = 20
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_keys(schema: Any, layer: Any, place: str) -> None:
    """Raise UserError for keys that `schema` does not have, and for references to anything other than keys."""
    known = list(keys(schema))
    for key, value in _leaves(layer):
        _check_references(key, value, place)
        inner = [name for name in known if name.startswith(key + ".")]
        if inner and value is not None:
            raise UserError(
                f"config: {key}={value} in {place}: {key} is a group. Fix: set one of its keys, such as {inner[0]}."
            )
        if key not in known and not inner and not key.startswith(_tables(schema)):
            near = nearest_key(key, known)
            hint = f"; did you mean {near}?" if near else ""
            raise UserError(f"config: unknown key {key!r} in {place}{hint}")


def normalize_values(schema: Any, layer: Any) -> None:
    """Normalize values in place: named values, a list for a bare value, an empty dict for an empty group, and ~."""
    from omegaconf import OmegaConf

    known = dict(fields(schema))
    for key, value in _leaves(layer):
        field = known.get(key)
        if field is not None and field.metadata.get("is_path"):
            value = _expand_home(value)  # noqa: PLW2901
            OmegaConf.update(layer, key, value)
        if value is None and (field is None or field.type is str):  # a group with only comments, or val=
            OmegaConf.update(layer, key, {} if field is None else "")
        elif field is None:
            continue
        elif isinstance(value, str) and value in field.metadata.get("aliases", {}):
            OmegaConf.update(layer, key, field.metadata["aliases"][value])
        elif isinstance(value, str | int | float) and get_origin(field.type) is list and "${" not in str(value):
            OmegaConf.update(layer, key, [value])


def _expand_home(value: Any) -> Any:
    """Expand ~ in a path or a list of paths: the shell does not expand it after train.run_dir=."""
    if isinstance(value, list):
        return [_expand_home(each) for each in value]
    if not isinstance(value, str) or "://" in value:
        return value
    return TILDE.sub(lambda found: str(expand_home(found[0])), value)


def absolute_source(text: str) -> str:
    """Make the path in a source of weights absolute: PATH, KIND:PATH or KIND:NAME@PATH; keep names and URLs."""
    head = re.match(r"(timm|random):|((torchvision|weights|simfle):)?([\w.]+@)?", text) if text else None
    if head is None or head[1] or "://" in text:
        return text
    start = head[0] if head[2] else ""
    return start + str(Path(text.removeprefix(start)).absolute())


def _leaves(layer: Any) -> list[tuple[str, Any]]:
    """Return dotted names and values of a layer, unresolved."""
    from omegaconf import OmegaConf

    return list(flatten(cast(dict, OmegaConf.to_container(layer))).items())


def _tables(schema: Any) -> tuple[str, ...]:
    """Return the prefixes of user-defined keys: those of dictionary fields."""
    return tuple(f"{name}." for name, field in fields(schema) if get_origin(field.type) is dict)


def describe_type_error(schema: Any, layer: Any, error: Any) -> str:
    """Describe a value that its field cannot take."""
    key = str(error.full_key).partition("[")[0]
    field, value = dict(fields(schema)).get(key), dict(_leaves(layer)).get(key)
    if field is None:
        return f"{str(error).splitlines()[0]} ({error.full_key})"
    if get_origin(field.type) is list:
        must = f"a list, each {KINDS[get_args(field.type)[0]]}" if isinstance(value, list) else "a list, such as [a,b]"
    else:
        must = KINDS.get(field.type, "names with values")
    return f"{key}={'' if value is None else value}: must be {must}"


def _check_references(key: str, value: Any, place: str) -> None:
    """Raise UserError for references to anything other than keys, such as the environment or a function."""
    if "${" in REFERENCE.sub("", str(value)):
        raise UserError(
            f"config: {key}={value!r} in {place}: only references to keys are allowed, such as ${{train.seed}}. Fix: "
            "write the value instead of a reference to the environment or a function."
        )


def read_yaml(file: Path) -> str:
    """Read the text of a YAML file; reject aliases, deep nesting and large files, which a configuration never needs.

    Raises:
        UserError: If the file is too large, is nested too deeply, or has an alias or a time without quotes.
        YAMLError: If the file is not valid YAML.
        OSError: If the file cannot be read.
    """
    import yaml

    if file.stat().st_size > MAX_YAML:
        raise UserError(f"config: {file}: more than {MAX_YAML} bytes, not a configuration. Fix: check the path.")
    text = read_text(file)
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"config: {file}: YAML alias *{event.anchor}. Fix: refer to a key, like ${{train.seed}}.")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and BASE_60.fullmatch(event.value):
            raise UserError(f"config: {file}: YAML reads {event.value} as a number. Fix: write '{event.value}'.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise UserError(
                f"config: {file}: nested more than {MAX_YAML_DEPTH} levels deep, not a configuration. "
                "Fix: check the path."
            )
    return text


def texts_as_written(schema: Any, text: str) -> str:
    """Mark each scalar of a text field as text in YAML: run: 007 means "007", not 7. Raises YAMLError."""
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
    """Mark a scalar that has a value as text."""
    if hasattr(node, "style") and node.tag not in ("tag:yaml.org,2002:null", TEXT) and isinstance(node.value, str):
        node.tag, node.style = TEXT, '"'


def parse_overrides(schema: Any, overrides: Sequence[str]) -> Any:
    """Parse the layer of the command line; texts are taken as typed. Raises UserError for an invalid override."""
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
                f"config: cannot read {text!r} on the command line ({why}). Fix: close all quotes and brackets; in a "
                f'list, quote text that contains brackets, commas or quotes, such as "{EXAMPLE}".'
            ) from None
    return layer


def keys(schema: Any) -> Iterator[str]:
    """Yield dotted names of all leaf fields of a config dataclass."""
    return (name for name, _ in fields(schema))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten {'a': {'b': 1}} to {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def fields(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and fields of all leaves."""
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from fields(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field
