"""Write docs/configuration.md from the dataclasses: `python docs/configuration.py`. A test fails if the page is stale.

Names, types, defaults, meanings and ranges come from the dataclasses.
tests/docs/test_docs_configuration.py tries values on both sides of every range.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simfle.config.schema import PretrainConfig
from simfle.config.validate import describe_limits
from simfle.eval.config import EvalConfig
from simfle.eval.data.benchmarks import Benchmark
from simfle.slurm.config import ClusterConfig

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Configuration

<!-- Written by docs/configuration.py from the dataclasses. Change the dataclasses, then run the script. -->

A configuration combines the defaults below, a YAML file and `key=value` on the command line; later values take
precedence. An error for an unknown key names the nearest key; one for a wrong type or range lists valid values.
Write lists as `[a,b]`, or a single value without brackets. A value may refer to another key, as in
`train.run_dir=runs/${model.method}`. A path may begin with `~`. Text is taken as typed: `train.run_dir="runs/exp #1"`,
`007`
and `yes` are names. In a list, quote text that contains a comma or a bracket.

    simfle pretrain configs/pretrain/faces_cpu.yaml data.shards=[shards/mine] train.steps=200

If the column "range" is empty, the program checks only the type. Numbers must be finite. The range of a field that the
chosen method does not use is not checked.
"""
SECTIONS: tuple[tuple[str, type, str], ...] = (
    (
        "Pretraining",
        PretrainConfig,
        "`configs/pretrain/*.yaml`; `simfle pretrain`, `simfle slurm pretrain`, `simfle plan`, `simfle bench`. Fields "
        "marked \\* may change between two starts of the same run. The others identify the run; it cannot resume with "
        "another value.",
    ),
    ("Evaluation", EvalConfig, "`configs/eval/*.yaml`; `simfle evaluate`, `simfle slurm eval`."),
    (
        "Benchmark",
        Benchmark,
        "`configs/benchmarks/*.yaml`, or a file of your own: `benchmarks=[mine.yaml=shards/mine]`.",
    ),
    (
        "Cluster",
        ClusterConfig,
        "`configs/cluster/*.yaml`, given with `--cluster`; on the command line of `simfle slurm`, `cluster.KEY=VALUE`. "
        "Explanations: [Slurm](../SLURM.md).",
    ),
)


@dataclasses.dataclass(frozen=True)
class Field:
    """One leaf field: dotted name, type and default as written by a user, help, range, and whether it may change."""

    name: str
    kind: str
    default: str
    help: str
    range: str
    free: bool


def fields(schema: type, prefix: str = "", value: Any = None) -> Iterator[Field]:
    """Yield the leaf fields of a configuration, in their order."""
    value = schema() if value is None else value
    for item in dataclasses.fields(schema):
        found = getattr(value, item.name)
        if dataclasses.is_dataclass(item.type):
            yield from fields(type(found), f"{prefix}{item.name}.", found)
        else:
            kind = item.type.__name__ if isinstance(item.type, type) and "[" not in str(item.type) else str(item.type)
            free = bool(item.metadata.get("resume_safe"))
            yield Field(f"{prefix}{item.name}", kind, written(found), item.metadata["help"], accepted(item), free)


def accepted(field: Any) -> str:
    """Return the accepted values of a dataclass field: its limits, and the rule that involves other fields."""
    return "; ".join(text for text in (describe_limits(field), field.metadata["limits"].rule) if text)


def written(value: Any) -> str:
    """Format a value as on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if value == "" or ":" in str(value) else str(value)


def table(schema: type) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| field | type | default | meaning | range |"
    yield "|---|---|---|---|---|"
    for field in fields(schema):
        name = f"`{field.name}`" + (" \\*" if field.free else "")
        text = field.help.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
        yield f"| {name} | {field.kind} | `{field.default}` | {text} | {field.range} |"


def page() -> str:
    """Return the page."""
    lines = [HEAD]
    for title, schema, text in SECTIONS:
        lines += [f"## {title}", "", text, "", *table(schema), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
