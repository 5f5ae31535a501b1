"""Labelled splits: what is read, which classes stay, and one clear line where something is missing."""

import pytest
from eval_fixtures import CLASSES, MakeShards

from simfle.errors import UserError
from simfle.eval.splits import choose_classes, read_split


def test_what_is_read(make_shards: MakeShards) -> None:
    folder = str(make_shards({"train": [30, 10, 4], "test": [3, 2, 1]}))
    train, test = read_split([folder], "train"), read_split([folder], "test")
    assert (len(train), len(test)) == (44, 6)
    assert train.ids.tolist() == list(range(44))
    assert test.ids.tolist() == list(range(44, 50))
    assert train.classes == CLASSES
    for split in (train, test):
        for key, group, label in zip(split.keys, split.groups, split.labels, strict=True):
            name, of_class, number = key.split("-")
            assert (name, int(of_class)) == (split.name, label)
            assert group == f"{name}-{of_class}-{int(number) // 2}"
    assert not set(train.groups) & set(test.groups)


def test_rare_classes_are_left_out_by_their_count_in_both_splits(make_shards: MakeShards) -> None:
    folder = str(make_shards({"train": [30, 10, 4], "test": [3, 2, 1]}))
    splits = read_split([folder], "train"), read_split([folder], "test")
    train, test, left_out = choose_classes(*splits, 6)
    assert left_out == {"stripes": 5}
    assert train.classes == ("circle", "cross")
    assert sorted(set(train.labels.tolist())) == [0, 1]
    assert (len(train), len(test), len(train.keys), len(test.groups)) == (40, 5, 40, 5)
    assert choose_classes(*splits, 5)[2] == {}


def test_kept_classes_are_numbered_anew(make_shards: MakeShards) -> None:
    folder = str(make_shards({"train": [1, 10, 9], "test": [1, 2, 5]}))
    train, test, left_out = choose_classes(read_split([folder], "train"), read_split([folder], "test"), 3)
    assert left_out == {"circle": 2}
    assert test.classes == ("cross", "stripes")
    assert all(key.split("-")[1] == str(label + 1) for key, label in zip(test.keys, test.labels, strict=True))
    assert len(train) == 19


def test_unknown_split_names_those_there_are(make_shards: MakeShards) -> None:
    with pytest.raises(UserError, match=r"no split 'tset'.*there are: test, train"):
        read_split([str(make_shards({"train": [2, 2, 2], "test": [1, 1, 1]}))], "tset")


def test_unlabelled_shards(make_shards: MakeShards) -> None:
    with pytest.raises(UserError, match=r"split 'train' of .* has no labels; build the shards"):
        read_split([str(make_shards({"train": [2, 2, 2]}, labelled=False))], "train")


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_class_missing_in_a_split(make_shards: MakeShards, missing: str) -> None:
    counts = {"train": [5, 5, 5], "test": [5, 5, 5], missing: [5, 0, 5]}
    folder = str(make_shards(counts))
    with pytest.raises(UserError, match=f"no 'cross' in split '{missing}'.*min_class_count above 5"):
        choose_classes(read_split([folder], "train"), read_split([folder], "test"), 1)


def test_one_class_only(make_shards: MakeShards) -> None:
    folder = str(make_shards({"train": [5, 1, 1], "test": [5, 1, 1]}))
    with pytest.raises(UserError, match="at least two classes are needed, there is circle"):
        choose_classes(read_split([folder], "train"), read_split([folder], "test"), 5)
