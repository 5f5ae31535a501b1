"""The store: results are read as written, and incomplete files are named in errors."""

import json
from pathlib import Path

import pytest
from helpers.small_result import result

from simfle.errors import UserError
from simfle.eval.analysis.results import Samples, read_result, read_results, write_result


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_result(tmp_path, result())
    assert path == tmp_path / "run-online-1a2b3c4d/rafdb/linear/seed-0.json"
    found = read_result(path)
    assert found == result()
    assert found.path == path
    assert found.score == 0.75
    assert found.labels().dtype == found.predictions().dtype == "int64"
    assert found.predictions().tolist() == [0, 1, 1]


def test_distributions_are_read_as_numbers(tmp_path: Path) -> None:
    votes = Samples(["a"], ["a"], [[0.5, 0.5]], [[0.25, 0.75]])
    found = read_result(write_result(tmp_path, result(kind="votes", samples=votes)))
    assert found.predictions().tolist() == [[0.25, 0.75]]


def test_all_below_a_folder_each_once(tmp_path: Path) -> None:
    for seed in (1, 0):
        write_result(tmp_path / "run" / "eval", result(seed=seed))
    write_result(tmp_path / "run" / "eval", result(protocol="finetune@0.01"))
    (tmp_path / "run" / "eval" / "summary.json").write_text("{}")
    found = read_results([tmp_path / "run", tmp_path / "run" / "eval"])
    assert [(each.protocol, each.seed) for each in found] == [("finetune@0.01", 0), ("linear", 0), ("linear", 1)]
    with pytest.raises(UserError, match="is not a folder"):
        read_results([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "is corrupt"),
        (lambda text: text.replace('"format": 3', '"format": 1'), "has format 1, not 3"),
        (lambda text: text.replace('["p","p","q"]', '["p","p"]'), "differ in length"),
        (lambda text: "[]", "is corrupt"),
        (lambda text: json.dumps({"format": 3}), "is corrupt"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, change: object, message: str) -> None:
    path = write_result(tmp_path, result())
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as error:
        read_result(path)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seed-0\.json does not exist"):
        read_result(tmp_path / "seed-0.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"balanced_accuracy": 0.75', '"balanced_accuracy": 0.95'),
        ('"predictions": [0,1,1]', '"predictions": [0,1,0]'),
        ('"groups": ["p","p","q"]', '"groups": ["p","r","q"]'),
        ('"samples": 3', '"samples": 4'),
        ('"seed": 0', '"seed": 1'),
    ],
)
def test_a_value_changed_by_hand_is_told(tmp_path: Path, old: str, new: str) -> None:
    path = write_result(tmp_path, result())
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"a value was changed after the file was written\)\. Fix: delete it"):
        read_result(path)


def test_files_without_a_checksum_and_with_another_command_are_read(tmp_path: Path) -> None:
    """Results of earlier versions, and results whose command was edited to remove a private path, stay valid."""
    path = write_result(tmp_path, result())
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "command": ["simfle"]}))
    assert read_result(path).command == ["simfle"]
    del content["checksum"]
    path.write_text(json.dumps({**content, "seed": 1}))
    assert read_result(path).seed == 1
