"""Known corpora through the command line: numbering, terms, counts held against the published ones."""

import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from helpers import cli_runner
from helpers.affectnet_corpus import write_lists
from helpers.ckplus_corpus import write_ckplus
from helpers.expw_corpus import write_expw
from helpers.fer2013_corpus import write_fer2013, write_ferplus
from helpers.rafdb_corpus import write_rafdb

from shards.format.manifest import read_manifest
from shards.sources.corpora.affectnet.common import LABELS
from shards.sources.registry import all_corpora
from simfle.commands.shards.build_corpus import differences

pytestmark = pytest.mark.slow


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return cli_runner.run(*cli_runner.tool("build_shards"), *words)


def numbers(shards: Path) -> dict[str, int]:
    """Source -> the number in `.cls`."""
    found = {}
    for info in read_manifest(shards).shards:
        with tarfile.open(shards / info.file) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    source = json.load(tar.extractfile(name))["source"]
                    found[source] = int(tar.extractfile(name.removesuffix("json") + "cls").read())
    return found


def test_affectnet_keeps_its_numbers_and_says_what_is_missing(tmp_path: Path) -> None:
    faces, out = write_lists(tmp_path / "affectnet"), tmp_path / "out"
    done = run("affectnet", faces, out, "--workers", 1)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(out)
    assert manifest.labels == LABELS[:8]
    assert manifest.corpus == "affectnet"
    assert manifest.rejected == {"bad_row": 2, "empty": 1, "missing": 1, "outside": 1, "unknown_label": 3}
    assert {source: cls for source, cls in numbers(out).items() if "/9/" in source} == {
        f"Manually_Annotated_Images/9/v{n}.jpg": n for n in range(8)
    }
    assert "non-commercial research" in manifest.terms
    assert f"terms of use of affectnet: {manifest.terms}" in done.stdout
    source = manifest.build["source"]
    assert source == {
        "kind": "affectnet", "name": "affectnet", "release": "csv-2017", "classes": 8, "automatic": False,
    }  # fmt: skip
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    gap = {"split": "train", "label": "contempt", "expected": 3750, "found": 1}
    published = manifest.build["published"]
    assert gap in published["differences"]
    assert published["expected"]["val"]["contempt"] == 500
    assert len(published["differences"]) == 16
    assert "16 of the published counts differ" in done.stdout
    assert any(
        line.split()[0:5:2] == ["│", "│", "│"] and "contempt" in line and "-3749" in line
        for line in done.stdout.splitlines()
    )


def test_the_comparison_is_in_the_manifest_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that is killed as its shards appear has it too, and told again it shows it."""
    faces, out = write_ckplus(tmp_path / "ck"), tmp_path / "out"
    command = ("ckplus", faces, out, "--workers", 1, "--keep-unlabeled")
    with monkeypatch.context() as killed:
        killed.setattr("shards.build.builder._notes", lambda *_: sys.exit(9))  # what comes next
        assert run(*command).returncode == 9
    rows = {row["label"]: row["found"] for row in read_manifest(out).build["published"]["differences"]}
    assert rows == {
        "neutral": 4, "anger": 1, "contempt": 0, "disgust": 1, "fear": 0, "happy": 0, "sadness": 0, "surprise": 1,
    }  # fmt: skip
    content = (out / "manifest.json").read_bytes()
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").read_bytes() == content
    assert "already complete" in done.stdout
    assert "counts that differ from the published ones" in done.stdout
    assert not (tmp_path / "out.partial").exists()


def test_whole_photos_are_told_to_be_cropped(tmp_path: Path) -> None:
    photos = write_expw(tmp_path / "expw")
    assert "--crop 0.25 crops to the box" in run("expw", photos, tmp_path / "whole").stdout
    assert "--crop 0.25" not in run("expw", photos, tmp_path / "cropped", "--crop", 0.25).stdout


def test_options_of_the_source(tmp_path: Path) -> None:
    faces = write_lists(tmp_path / "affectnet")
    assert run("affectnet", faces, tmp_path / "7", "--workers", 1, "--classes", 7).returncode == 0
    assert read_manifest(tmp_path / "7").labels == LABELS[:7]
    assert read_manifest(tmp_path / "7").rejected["unknown_label"] == 5
    write_fer2013(tmp_path / "fer")
    votes = write_ferplus(tmp_path / "plus")
    done = run("ferplus", votes, tmp_path / "plus8", "--fer2013", tmp_path / "fer", "--rule", "argmax", "--workers", 1)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "plus8")
    assert manifest.build["source"]["fer2013"] == "fer"
    assert manifest.labels[:2] == ("neutral", "happiness")
    assert manifest.rejected == {"unknown_label": 3}
    done = run("ferplus", votes, tmp_path / "no", "--fer2013", tmp_path / "fer", "--rule", "mean")
    assert (done.returncode, done.stderr) == (1, "error: --rule=mean: unknown. Fix: choose one of majority, argmax.\n")


def test_the_first_number_of_a_corpus_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("rafdb", write_rafdb(tmp_path / "basic"), out, "--workers", 1).returncode == 0
    manifest = read_manifest(out)
    assert manifest.build["source"]["first_label"] == 1
    assert numbers(out)["Image/aligned/train_00001_aligned.jpg"] == 5 - 1
    assert manifest.labels[5 - 1] == "sadness"


def test_people_stay_whole_and_counts_are_summed_where_splits_are_drawn(tmp_path: Path) -> None:
    faces, out = write_ckplus(tmp_path / "ck"), tmp_path / "out"
    done = run("ckplus", faces, out, "--workers", 1, "--test-fraction", 0.5, "--split-seed", 1, "--no-neutral")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(out)
    assert set(manifest.splits) == {"train", "test"}
    assert {row["split"] for row in manifest.build["published"]["differences"]} == {"all"}
    assert manifest.rejected == {"unlabeled": 1}


def test_another_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    done = run("rafdb", tmp_path / "faces", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: rafdb: no list of labels in")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces"]


EXPECTED = {"train": {"a": 3, "b": 2}, "val": {"": 2}}


@pytest.mark.parametrize(
    ("written", "labels", "moved", "rows"),
    [
        ({("train", "a"): 3, ("train", "b"): 2, ("val", "a"): 1, ("val", ""): 1}, (), False, []),
        ({("train", "a"): 3, ("val", "a"): 2}, (), False, [("train", "b", 2, 0)]),
        ({("train", "a"): 3, ("val", "a"): 2}, ("a",), False, []),
        ({("train", "a"): 3, ("train", "b"): 2}, (), False, [("val", "", 2, 0)]),
    ],
)
def test_differences(written: dict, labels: tuple, moved: bool, rows: list) -> None:
    found = differences(EXPECTED, Counter(written), labels, moved)
    assert [tuple(row.values()) for row in found] == rows


def test_differences_where_fractions_moved_people() -> None:
    expected = {"train": {"a": 3}, "val": {"a": 1}}
    assert differences(expected, Counter({("train", "a"): 1, ("val", "a"): 2, ("test", "a"): 1}), (), True) == []
    assert differences(expected, Counter({("train", "a"): 1, ("val", "a"): 2}), (), True) == [
        {"split": "all", "label": "a", "expected": 4, "found": 3}
    ]


def test_every_known_corpus_is_described() -> None:
    corpora = all_corpora()
    assert len({corpus.name for corpus in corpora}) == len(corpora)
    for corpus in corpora:
        assert corpus.title.endswith(".")
        assert corpus.terms
        assert len(set(corpus.labels)) == len(corpus.labels)
        assert all(label == label.strip().casefold() for label in corpus.labels)
