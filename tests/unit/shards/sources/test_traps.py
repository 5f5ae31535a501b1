"""The table of traps names tests that are there, and every source has its tests in it."""

import ast
import re
from pathlib import Path

from shards.sources.registry import SOURCES

HERE = Path(__file__).parent
ROWS = re.findall(r"^\|.*\| `(.*\.py)::(\w+)` \|$", (HERE / "TRAPS.md").read_text(), re.MULTILINE)
ELSEWHERE = {
    "ferplus": "fer2013",
    "digiface": "rendered_corpora",
    "facesynthetics": "rendered_corpora",
} | dict.fromkeys(("ibug300w", "wflw", "cofw", "aflw19"), "landmark_corpora")


def test_each_named_test_is_there() -> None:
    assert len(ROWS) == (HERE / "TRAPS.md").read_text().count("::")
    for file in {file for file, _ in ROWS}:
        (found,) = HERE.parents[1].rglob(file)
        functions = {node.name for node in ast.parse(found.read_text()).body if hasattr(node, "name")}
        assert not {test for where, test in ROWS if where == file} - functions


def test_every_known_corpus_has_traps() -> None:
    named = {file for file, _ in ROWS}
    assert not {name for name in SOURCES if f"test_{ELSEWHERE.get(name, name)}.py" not in named}
