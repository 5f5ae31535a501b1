"""Labeled splits: samples, classes, subsets by people, and one clear line for missing data."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.eval_fixtures import CLASSES, MakeShards
from hypothesis import given, settings
from hypothesis import strategies as st

from simfle.errors import UserError
from simfle.eval.data.splits import (
    Split,
    check_classes,
    folds,
    frequent_classes,
    holdout_split,
    name_classes,
    read_split,
)


def split(people: list[tuple[int, list[int]]], classes: int = 3) -> Split:
    """Make a split without shards: (person, labels of the images) each."""
    labels = np.array([label for _, each in people for label in each], dtype=np.int64)
    groups = tuple(f"p{person:03d}" for person, each in people for _ in each)
    keys = tuple(f"k{number}" for number in range(len(labels)))
    names = tuple("abcdefgh"[:classes])
    return Split("train", None, np.arange(len(labels)), labels, keys, groups, names)  # type: ignore[arg-type]


def test_what_is_read(make_shards: MakeShards) -> None:
    folder = str(make_shards({"train": [30, 10, 4], "test": [3, 2, 1]}))
    train, test = read_split([folder], "train"), read_split([folder], "test")
    assert (len(train), len(test)) == (44, 6)
    assert train.ids.tolist() == list(range(44))
    assert test.ids.tolist() == list(range(44, 50))
    assert train.classes == CLASSES
    for each in (train, test):
        for key, group, label in zip(each.keys, each.groups, each.labels, strict=True):
            name, of_class, number = key.split("-")
            assert (name, int(of_class)) == (each.name, label)
            assert group == f"{name}-{of_class}-{int(number) // 2}"
    assert train.counts() == {"circle": 30, "cross": 10, "stripes": 4}
    assert train.people() == 22
    assert train.source.digest != test.source.digest
    assert train.metadata(3)["group"] == train.groups[3]


def test_samples_of_two_folders_have_names_of_their_own(make_shards: MakeShards) -> None:
    """Images of two corpora may have equal names; paired tests match samples by name."""
    folders = [str(make_shards({"test": [3, 2, count]}, name)) for name, count in (("a", 1), ("b", 2))]
    first, second = (read_split([folder], "test") for folder in folders)
    assert set(first.keys) < set(second.keys)
    renamed = (f"2: {key}" if key in first.keys else key for key in second.keys)
    assert read_split(folders, "test").keys == (*first.keys, *renamed)


def test_some_samples_keep_what_belongs_to_them(make_shards: MakeShards) -> None:
    whole = read_split([str(make_shards({"train": [6, 6, 6]}))], "train")
    some = whole.only(np.array([7, 2])).only(np.array([True, False]))
    assert (some.keys, some.labels.tolist(), some.ids.tolist()) == (whole.keys[7:8], [whole.labels[7]], [7])
    assert some.metadata(0) == whole.metadata(7)


def test_named_classes_are_numbered_as_named(make_shards: MakeShards) -> None:
    whole = read_split([str(make_shards({"train": [3, 4, 5]}))], "train")
    some = name_classes(whole, ["stripes", "circle"])
    assert some.counts() == {"stripes": 5, "circle": 3}
    assert all(
        int(key.split("-")[1]) == {0: 2, 1: 0}[int(label)] for key, label in zip(some.keys, some.labels, strict=True)
    )
    with pytest.raises(UserError, match=r"no class 'joy' among the labels of split 'train' \(circle, cross, stripes\)"):
        name_classes(whole, ["circle", "joy"])


def test_rare_classes_are_left_out_by_their_count_in_all_splits() -> None:
    splits = [split([(0, [0] * 30 + [1] * 10 + [2] * 4)]), split([(1, [0, 1, 2])])]
    assert frequent_classes(splits, 6) == (["a", "b"], {"c": 5})
    assert frequent_classes(splits, 5) == (["a", "b", "c"], {})
    with pytest.raises(UserError, match=r"min_class_count=12: at least two classes are needed, found a"):
        frequent_classes(splits, 12)


def test_a_cut_takes_whole_people_and_a_share_of_each_class() -> None:
    people = [(person, [person % 3] * 4) for person in range(60)]
    mask = holdout_split(split(people), 0.25, "val")
    assert mask.reshape(60, 4).all(1).sum() == mask.sum() // 4  # people are kept complete
    assert np.bincount(split(people).labels[mask]).tolist() == [20, 20, 20]
    assert (holdout_split(split(people), 0.25, "val") == mask).all()
    assert (holdout_split(split(people), 0.25, "other") != mask).any()
    backwards = split(people[::-1])
    found = set(np.array(backwards.groups)[holdout_split(backwards, 0.25, "val")])
    assert found == set(np.array(split(people).groups)[mask])  # independent of the order of shards


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=25),
    st.floats(0.01, 0.5),
    st.booleans(),
)
def test_cuts_never_divide_a_person_nor_empty_a_class(labels: list[list[int]], share: float, leave: bool) -> None:
    whole = split(list(enumerate(labels)))
    mask = holdout_split(whole, share, "x", leave=leave)
    groups = np.array(whole.groups)
    assert not set(groups[mask]) & set(groups[~mask])
    for label in set(whole.labels.tolist()):
        if leave:
            assert (whole.labels[~mask] == label).any()
        else:
            assert (whole.labels[mask] == label).any()
            if len(set(groups)) == len(groups):  # one image per person: the fraction is exact
                assert (whole.labels[mask] == label).sum() == max(1, round(share * (whole.labels == label).sum()))


def test_folds_deal_out_people_in_the_order_of_their_names() -> None:
    whole = split([(person, [0, 1]) for person in (5, 3, 1, 4, 2)])
    masks = folds(whole, 2)
    assert [sorted(set(np.array(whole.groups)[mask])) for mask in masks] == [["p001", "p003", "p005"], ["p002", "p004"]]
    assert (np.sum(masks, axis=0) == 1).all()
    with pytest.raises(UserError, match="folds=6: split 'train' has only 5 people"):
        folds(whole, 6)


def test_unknown_split_names_those_there_are(make_shards: MakeShards) -> None:
    with pytest.raises(UserError, match=r"no split 'tset'.*Fix: choose from test, train\."):
        read_split([str(make_shards({"train": [2, 2, 2], "test": [1, 1, 1]}))], "tset")


def test_unlabeled_shards(make_shards: MakeShards) -> None:
    folder = str(make_shards({"train": [2, 2, 2]}, labeled=False))
    with pytest.raises(UserError, match=r"split 'train' of .* has no labels. Fix: build the shards"):
        read_split([folder], "train")
    assert len(read_split([folder], "train", labeled=False)) == 6


def test_a_label_outside_the_list(make_shards: MakeShards) -> None:
    folder: Path = make_shards({"train": [2, 2, 2]})
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "labels": ["circle", "cross"]}))
    with pytest.raises(UserError, match=r"train-2-\d has label 2, but the manifest has 2"):
        read_split([str(folder)], "train")


def test_a_class_missing_in_a_split() -> None:
    with pytest.raises(UserError, match=r"no 'b' in split 'train' for testing\. Fix: exclude the class"):
        check_classes(split([(0, [0, 2])]), "testing")
