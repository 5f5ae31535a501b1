"""The table of traps names tests that are there, and every source has its tests in it."""

import ast
import re
from pathlib import Path

from shards.sources.registry import SOURCES

HERE = Path(__file__).parent
ROWS = re.findall(r"^\|.*\| `(.*\.py)::(\w+)` \|$", (HERE / "TRAPS.md").read_text(), re.MULTILINE)
ELSEWHERE = {"ferplus": "fer2013", "digiface": "drawn", "facesynthetics": "drawn"} | dict.fromkeys(
    ("ibug300w", "wflw", "cofw", "aflw19"), "landmarks"
)


def test_each_named_test_is_there() -> None:
    assert len(ROWS) == (HERE / "TRAPS.md").read_text().count("::")
    for file in {file for file, _ in ROWS}:
        functions = {node.name for node in ast.parse((HERE / file).read_text()).body if hasattr(node, "name")}
        assert not {test for where, test in ROWS if where == file} - functions


def test_every_known_corpus_has_traps() -> None:
    named = {file for file, _ in ROWS}
    assert not {name for name in SOURCES if f"test_source_{ELSEWHERE.get(name, name)}.py" not in named}
