"""Inputs that a build refuses with one line, without leaving files."""

import re
import sys
from pathlib import Path

import pytest
from helpers.corpus_fixtures import BUILD, contents, run, write_faces

from simfle.commands.shards.build import main

pytestmark = pytest.mark.slow

BAD = {
    "no such folder": (["folder", "absent", "out"], "DIR=absent: does not exist"),
    "an empty folder": (["folder", "empty", "out"], "no images in empty"),
    "no images in it": (["folder", "texts", "out"], "no images in texts .*1 .txt"),
    "all rejected": (
        ["folder", "broken", "out"],
        r"rejected \(1 empty, 1 not_an_image\); for example (a.jpg: empty, a file of zero bytes|b.png: not_an)",
    ),
    "class folders, but flat": (
        ["folder", "faces", "out", "--class-folders"],
        r"rejected \(4 unlabeled\); for example p_0000.jpg: unlabeled, no label, but",
    ),
    "split folders, but none": (["folder", "classes", "out", "--split-folders"], "rejected .*4 no_split"),
    "two groups": (
        ["csv", "list.csv", "out", "--group-column", "none", "--group-pattern", "(.)"],
        "pass only one",
    ),
    "output below a file": (["folder", "faces", "list.csv/out"], "list.csv/out.partial: cannot be created"),
    "output in the source": (["folder", "faces", "faces/out"], "inside the source"),
    "output exists": (["folder", "faces", "texts"], "texts exists and is not a folder of shards"),
    "fraction": (["folder", "faces", "out", "--val-fraction", "1.5"], r"--val-fraction=1.5: must be in \[0, 1\)"),
    "fractions": (
        ["folder", "faces", "out", "--val-fraction", ".5", "--test-fraction", ".5"],
        "no group is left to train on",
    ),
    "pattern": (["folder", "faces", "out", "--group-pattern", "("], "not a regular expression"),
    "pattern without a group": (["folder", "faces", "out", "--group-pattern", "a"], "has 0 groups"),
    "one group": (
        ["folder", "faces", "out", "--group-pattern", "^(p)_", "--val-fraction", ".5"],
        "no group is in split",
    ),
    "quality": (["folder", "faces", "out", "--quality", "0"], "--quality"),
    "labels": (["folder", "classes", "out", "--class-folders", "--labels", "a,,b"], "a name is empty"),
    "no such list": (["csv", "absent.csv", "out"], "CSV=absent.csv: does not exist"),
    "no such images": (["csv", "list.csv", "out", "--images", "absent"], "--images=absent: not a folder"),
    "unknown column": (
        ["csv", "list.csv", "out", "--images", "faces", "--label-column", "emotions"],
        r"no column 'emotions'. Did you mean 'emotion'\? \(columns: path, emotion, none\)",
    ),
    "unknown path column": (["csv", "list.csv", "out", "--path-column", ""], "no column ''"),
    "no label anywhere": (
        ["csv", "list.csv", "out", "--images", "faces", "--label-column", "none"],
        "--label-column=none: no row of list.csv has a label",
    ),
    "an empty list": (["csv", "empty.csv", "out"], "empty.csv is empty"),
    "a list of no rows": (["csv", "header.csv", "out"], "a header but no rows"),
    "not text": (["csv", "image.csv", "out"], "not UTF-8"),
    "all missing": (
        ["csv", "list.csv", "out", "--images", "empty"],
        r"rejected \(2 missing\); for example p_000.\.jpg: missing, No such file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_faces(Path("faces"), 4)
    write_faces(Path("classes"), 4, ("a", "b"))
    for name in ("empty", "texts", "broken"):
        Path(name).mkdir()
    Path("texts/a.txt").write_text("text")
    Path("broken/a.jpg").write_text("")
    Path("broken/b.png").write_text("text")
    Path("list.csv").write_text("path,emotion,none\np_0000.jpg,glad,\np_0001.jpg,calm,\n")
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("path,emotion\n")
    Path("image.csv").write_bytes(b"path\n\xff\xd8\xff\n")
    before = contents(tmp_path), sorted(tmp_path.iterdir())
    arguments, words = BAD[case]
    monkeypatch.setattr(sys, "argv", ["build_shards.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert re.fullmatch(f"error: .*{words}.*\n", capsys.readouterr().err)
    assert (contents(tmp_path), sorted(tmp_path.iterdir())) == before


def test_folders_made_for_nothing_are_taken_away(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(*BUILD, "folder", tmp_path / "empty", tmp_path / "a" / "b" / "out").returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
