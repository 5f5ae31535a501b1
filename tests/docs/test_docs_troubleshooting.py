"""Every message on the troubleshooting page exists in the program."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
# The first table column, if it is code.
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def texts() -> list[str]:
    """Return all texts in our code, with … for the values of f-strings."""
    found = []
    for file in [*ROOT.glob("simfle/**/*.py"), *ROOT.glob("shards/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


ALL = texts()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_code(message: str) -> None:
    whole = message.strip("… ")
    if any(whole in text for text in ALL):
        return
    # Composed of several texts, or with constants: each piece must be in one of our texts.
    pieces = [piece for piece in re.split(r"…|; |manifest\.json|\.npz or", message) if len(piece.strip()) > 10]
    assert pieces, message
    for piece in pieces:
        assert any(piece.strip() in text for text in ALL), piece


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 25
