"""The list of banned phrases finds them in real files, and finds nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from lint.style import find_phrases, read_phrases

SCRIPT = Path(__file__).with_name("style.py")


def run(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), str(path)], capture_output=True, text=True, check=False)


def test_hits_are_printed_with_file_line_and_better_words(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\nThe run goes on\nafter its last checkpoint. Whoever waits\n")  # style: ok
    done = run(page)
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        f"{page}:3: goes on -> resume, continue",  # style: ok
        f"{page}:4: Whoever -> name the subject: a process that, a user who",  # style: ok
    ]


def test_a_clean_file_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("Rerun the command to resume.\n")
    done = run(tmp_path / "page.md")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.md", "it goes\non", [1]),  # a phrase across lines
        ("a.md", "`it goes on`, ``it goes on``", []),  # quoted; style: ok
        ("a.md", "```text\nit goes on\n```", [2]),  # a block is text, too; style: ok
        ("a.md", "it goes on <!-- style: ok -->", []),
        ("a.md", "recommend, RUN/corrupt_samples.jsonl, it goes once", []),  # parts of words, names of files
        ("a.py", "mend(anew)  # mend it\n", [1]),  # code is no prose; style: ok
        ("a.py", 'x = "goes on"\n', [1]),  # style: ok
        ("a.py", 'x = f"{run} goes on"\n', [1]),  # style: ok
        ("a.py", 'x = ["goes", on]\n', []),
        ("a.py", "def f():\n    # the run goes\n    # on here\n", [2]),
        ("a.py", 'def f():\n    """What is returned."""\n', [2]),  # style: ok
        ("a.py", 'def f():\n    """Return what is stored."""\n', []),
        ("a.yaml", "steps: 3 # it goes on\n", [1]),  # style: ok
    ],
)
def test_where_phrases_are_looked_for(name: str, text: str, lines: list[int], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [line for line, _, _ in find_phrases(tmp_path / name, read_phrases())] == lines


def test_each_phrase_has_better_words() -> None:
    phrases = read_phrases()
    assert len(phrases) > 40
    assert all(phrase.better for phrase in phrases)
