"""Shipped benchmarks match the sources of shards, user benchmarks are checked, parts share no people."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.eval_fixtures import MakeShards

from shards.sources.corpora import ckplus, expw, ferplus, ibug300w, rafdb, sfew, wflw
from shards.sources.corpora.affectnet import TRAIN
from shards.sources.corpora.affectnet.common import LABELS as AFFECTNET
from simfle.errors import UserError
from simfle.eval.config import EvalConfig
from simfle.eval.data.benchmarks import FOLDER, Benchmark, check, custom_benchmark, open_benchmark
from simfle.eval.data.folds import describe, fold_splits, read_data
from simfle.eval.protocols.base import parse

pytestmark = pytest.mark.slow

NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
MINE = Benchmark("mine", classes=["stripes", "circle"], val_fraction=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_ones_open(name: str) -> None:
    found = open_benchmark(f"{name}=shards/x", EvalConfig())
    assert (found.name, found.shards) == (name, ["shards/x"])
    assert found.title
    assert all(parse(word) for word in found.protocols)
    assert found.labeled == bool(found.classes)
    for counts in found.expected.values():
        assert set(counts) in (set(found.classes), {""})


def test_shipped_ones_agree_with_the_sources_of_shards() -> None:
    def counts(name: str, split: str) -> list[int]:
        return list(open_benchmark(f"{name}=x", EvalConfig()).expected[split].values())

    assert counts("affectnet8", "train") == list(TRAIN[:8])
    assert sum(counts("affectnet8", "train")) == 287651
    assert sum(counts("affectnet7", "train")) == 283901
    assert open_benchmark("affectnet8=x", EvalConfig()).classes == list(AFFECTNET[:8])
    for split in ("train", "test"):
        assert counts("rafdb", split) == list(rafdb.COUNTS[split])
        assert counts("ferplus", split) == list(ferplus.COUNTS["majority"][split])
        assert counts("wflw", split) == [wflw.EXPECTED[split]]
        assert counts("300w", split) == [sum(count for part, count in ibug300w.PARTS.values() if part == split)]
    assert counts("expw", "train") == list(expw.COUNTS)
    assert counts("ckplus", "train") == list(ckplus.PEAKS)
    assert open_benchmark("sfew=x", EvalConfig()).classes == list(sfew.LABELS)


def test_one_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("classes: [joy, fear]\nshards: [here]\nexpected: {train: {joy: 3}}\nmetric: accuracy\n")
    found = open_benchmark(str(file), EvalConfig())
    assert (found.name, found.shards, found.expected) == ("mine", ["here"], {"train": {"joy": 3}})
    assert open_benchmark(f"{file}=there", EvalConfig()).shards == ["there"]
    file.write_text("clases: [joy]\n")
    with pytest.raises(UserError, match=r"unknown key 'clases' in .*mine\.yaml; did you mean classes"):
        open_benchmark(str(file), EvalConfig())


def test_unknown_names_and_shards() -> None:
    with pytest.raises(UserError, match=r"benchmarks=rafbd: unknown\. Fix: use rafdb"):
        open_benchmark("rafbd", EvalConfig())
    with pytest.raises(UserError, match=r"the shards of rafdb are not given. Fix: set benchmarks=\[rafdb=FOLDER\]"):
        open_benchmark("rafdb", EvalConfig())
    assert open_benchmark("rafdb", EvalConfig(shards=["all"])).shards == ["all"]


def test_shards_that_are_named_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    twice = [str(tmp_path / "a"), str(tmp_path / "link")]
    for config in (EvalConfig(shards=twice), EvalConfig(shards=["x", "x"])):
        with pytest.raises(UserError, match=r"shards: .*named twice.*Fix: name it once"):
            custom_benchmark(config)
        with pytest.raises(UserError, match=r"shards: .*named twice.*Fix: name it once"):
            open_benchmark("rafdb", config)
    assert custom_benchmark(EvalConfig(shards=["x", "y"])).shards == ["x", "y"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "f1"}, "mine.yaml: metric='f1': must be accuracy, balanced_accuracy or macro_f1"),
        ({"name": "../mine"}, "name='../mine': not a valid folder name"),
        ({"name": "/elsewhere/mine"}, "not a valid folder name"),
        ({"val_fraction": 0.0}, "val_fraction=0.0: must be above 0, at most 0.5"),
        ({"folds": 1}, "folds=1: .* set folds to 0 or at least 2"),
        ({"folds": -1}, "folds=-1: must be at least 0"),
        ({"min_class_count": 0}, "min_class_count=0: must be at least 1"),
        ({"folds": 5}, "not empty, but folds are made from train"),
        ({"folds": 5, "test": "", "val": "v"}, "val=v: not empty, but with folds"),
        ({"val": "test"}, "not different splits: train, test, test"),
        ({"classes": ["a", "a"]}, "classes: a name is repeated"),
    ],
)
def test_fields_out_of_range(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(replace(MINE, **change), "mine.yaml")


def test_published_counts_that_differ_are_told(make_shards: MakeShards, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(make_shards({"train": [8, 8, 8], "test": [4, 4, 4]}))
    expected = {"train": {"circle": 8, "stripes": 9}, "test": {"": 8}, "val": {"": 1}}
    with caplog.at_level(logging.WARNING):
        data = read_data(replace(MINE, shards=[folder], expected=expected))
    told = ["mine: split train differs from the published counts: stripes 8 instead of 9"]
    assert data.about["differs"] == told
    assert caplog.messages == told


@pytest.mark.parametrize(
    "change", [{}, {"test": ""}, {"test": "", "folds": 4}, {"val": "val"}], ids=["test", "cut", "folds", "val"]
)
def test_parts_share_no_person(make_shards: MakeShards, change: dict) -> None:
    folder = str(make_shards({"train": [24, 24, 24], "test": [8, 8, 8], "val": [6, 6, 6]}))
    data = read_data(replace(MINE, shards=[folder], **change))
    found = list(fold_splits(data, 1.0, 0))
    assert len(found) == (change.get("folds") or 1)
    for each in found:
        people = [set(split.groups) for split in (each.train, each.val, each.test)]
        assert all(people)
        assert not people[0] & people[1]
        assert not people[0] & people[2]
        assert not people[1] & people[2]
        assert each.train.classes == ("stripes", "circle")
    if "folds" in change:
        tested = [key for each in found for key in each.test.keys]
        assert sorted(tested) == sorted(data.train.keys)  # each once
    about = describe(data, found)
    assert about["test"]["samples"] == sum(len(each.test) for each in found)
    assert about["test"]["people"] == about["test"]["samples"] // 2
    assert about["chance"] == 0.5


def test_few_labels_are_another_subset_for_each_seed_of_the_same_rest(make_shards: MakeShards) -> None:
    data = read_data(replace(MINE, shards=[str(make_shards({"train": [60, 60, 60], "test": [4, 4, 4]}))]))
    whole, few, again, other = (next(fold_splits(data, *how)) for how in ((1, 0), (0.1, 0), (0.1, 0), (0.1, 1)))
    assert few.train.counts() == dict.fromkeys(MINE.classes, 4)  # a tenth of 45, in people with two images
    assert few.train.keys == again.train.keys != other.train.keys
    assert set(few.train.keys) < set(whole.train.keys)
    assert few.val.keys == whole.val.keys == other.val.keys
    one = next(fold_splits(data, 0.001, 0))
    assert one.train.counts() == dict.fromkeys(MINE.classes, 2)  # at least one person of each class


def test_what_is_missing(make_shards: MakeShards) -> None:
    folder = str(make_shards({"train": [8, 8, 8], "test": [4, 4, 0]}))
    with pytest.raises(UserError, match="no 'stripes' in split 'test' for testing"):
        list(fold_splits(read_data(replace(MINE, shards=[folder])), 1.0, 0))
    with pytest.raises(UserError, match="at least two classes are needed, found circle"):
        read_data(replace(MINE, shards=[folder], classes=["circle"]))
    only = str(make_shards({"train": [8, 8, 8], "test": [0, 4, 0]}, name="cross"))
    with pytest.raises(UserError, match="split 'test' has no sample of stripes, circle"):
        read_data(replace(MINE, shards=[only]))
    unlabeled = str(make_shards({"train": [8, 8, 8], "test": [4, 4, 4]}, name="bare", labeled=False))
    with pytest.raises(UserError, match="has no labels"):
        read_data(replace(MINE, shards=[unlabeled]))
    data = read_data(replace(MINE, shards=[unlabeled], labeled=False, classes=[]))
    assert data.classes == ()
    assert len(next(fold_splits(data, 1.0, 0)).val) == 6
    assert np.all(next(fold_splits(data, 1.0, 0)).train.labels == 0)
