"""List banned words and phrases: `python tests/lint/style.py [FILE or FOLDER ...]`.

Read the comments, docstrings and strings of Python files, the text of Markdown files outside inline code, and all text
of other files. Print `file:line: found -> better` for each hit; exit with code 1 if there is one. banned.txt lists the
phrases. A line that contains `style: ok` is skipped. docs/style.md explains the rules.
"""

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PHRASES = Path(__file__).with_name("banned.txt")
MARKER = "style: ok"
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".html", ".js", ".toml", ".ipynb"}
CODE = "\0"  # replaces a character that is not prose: no phrase matches across it
PROSE_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


class Phrase(NamedTuple):
    """A banned pattern and the words to use instead."""

    pattern: re.Pattern[str]
    better: str


def read_phrases(path: Path = PHRASES) -> list[Phrase]:
    """Read the list of banned phrases."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [line.split(" => ", 1) for line in lines]
    return [Phrase(_compile(text), better) for text, better in pairs]


def find_phrases(path: Path, phrases: list[Phrase]) -> Iterator[tuple[int, str, str]]:
    """Yield line number (from 1), text found and better words for each hit in a file."""
    text = path.read_text(encoding="utf-8")
    prose = {".py": python_prose, ".md": markdown_prose}.get(path.suffix, str)(text)
    lines = text.splitlines()
    hits = sorted((match.start(), match[0], better) for pattern, better in phrases for match in pattern.finditer(prose))
    for start, found, better in hits:
        line = prose.count("\n", 0, start)
        if MARKER not in lines[line]:
            yield line + 1, " ".join(found.split()), better


def python_prose(text: str) -> str:
    """Replace all characters of Python code but comments and strings; line breaks stay."""
    lines = text.splitlines(keepends=True)
    kept = [[character if character == "\n" else CODE for character in line] for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in PROSE_TOKENS:
            continue
        (first, start), (last, end) = token.start, token.end
        for row in range(first - 1, last):
            begin, stop = (start if row == first - 1 else 0), (end if row == last - 1 else len(lines[row]))
            kept[row][begin:stop] = lines[row][begin:stop]
        if token.type == tokenize.COMMENT and not lines[first - 1][:start].strip():
            kept[first - 1][: start + 1] = " " * (start + 1)  # a phrase may continue on the next comment line
    return "".join(map("".join, kept))


def markdown_prose(text: str) -> str:
    """Replace the inline code of a Markdown page; line breaks stay."""
    return re.sub(r"(?<!`)(`{1,2})(?!`)[^`]+?\1(?!`)", lambda code: re.sub(r"[^\n]", CODE, code[0]), text)


def text_files(paths: list[str]) -> Iterator[Path]:
    """Yield the given files, and the text files of the given folders that git does not ignore."""
    for path in map(Path, paths):
        if path.is_file():
            yield path
            continue
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(command, cwd=path, capture_output=True, text=True, check=True).stdout.split("\0")
        yield from (
            path / name for name in sorted(set(names)) if Path(name).suffix in SUFFIXES and (path / name).exists()
        )


def main() -> int:
    """Print all hits. Return the exit code."""
    phrases = read_phrases()
    count = 0
    for path in text_files(sys.argv[1:] or [str(ROOT)]):
        for line, found, better in find_phrases(path, phrases):
            print(f"{path}:{line}: {found} -> {better}")
            count += 1
    if count:
        print(f"{count} banned phrases. Fix: use the words on the right, or mark a line that is right with `{MARKER}`.")
    return int(count > 0)


def _compile(text: str) -> re.Pattern[str]:
    """Compile a phrase: whole words, any case, any white space."""
    start = r"(?<!\w)" if text[0].isalnum() or text[0] == "(" else ""
    words = text.replace(" ", r"\s+")
    return re.compile(rf"{start}(?:{words})(?!\w)", re.IGNORECASE)


if __name__ == "__main__":
    sys.exit(main())
