"""subset, split and merge on real shards, by their command lines; every output verifies."""

import json
import math
import shutil
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_runner import command_module
from helpers.corpus_fixtures import BUILD, contents, run, tool, write_faces
from hypothesis import given
from hypothesis import strategies as st

from shards.edit.subset import Ranks, assign_ranges, take_fraction
from shards.edit.verify import verify
from shards.format.manifest import read_manifest
from shards.format.samples import StoredSample, read_samples

pytestmark = pytest.mark.slow

SUBSET, SPLIT, MERGE = (tool(f"{name}_shards") for name in ("subset", "split", "merge"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`: 180 samples of 20 people, three labels very uneven, splits train and test; `two`: other labels, some keys
    in common; `three`: no key in common."""
    folder = tmp_path_factory.mktemp("subset")
    for name, count, classes, people in (
        ("one", 180, ("sad", "happy", "happy", "happy", "calm", "happy"), 20),
        ("two", 30, ("zeal", "happy", "anger"), 5),
        ("three", 12, ("x",), 3),
    ):
        faces = write_faces(folder / name, count, classes, people)
        for path in sorted(faces.rglob("*.jpg")) if name == "three" else ():
            path.rename(path.with_name("other_" + path.name))
        (faces / classes[0] / "broken.jpg").write_bytes(b"")
        options = ["--class-folders", "--group-pattern", r"(p\d+)_", "--shard-samples", 50, "--terms", f"of {name}"]
        options += ["--test-fraction", 0.25] if name == "one" else []
        assert run(*BUILD, "folder", faces, folder / f"{name}-shards", *options).returncode == 0
    return folder


def samples(folder: Path) -> dict[str, tuple[str, StoredSample]]:
    """Key -> split and sample, in order."""
    found = [(info.split, sample) for info in read_manifest(folder).shards for sample in read_samples(folder, info)]
    assert len({sample.key for _, sample in found}) == len(found)
    return {sample.key: (split, sample) for split, sample in found}


def made(command: list[str], *arguments: object) -> Path:
    """Run it, verify what it made."""
    done = run(*command, *arguments)
    assert done.returncode == 0, done.stderr
    out = Path(done.stdout.split("next: simfle shards verify ")[1].splitlines()[0])
    assert verify(out, 1.0, 1, lambda _: None).problems == []
    assert not out.with_name(out.name + ".partial").exists()
    return out


def labels(found: dict[str, tuple[str, StoredSample]]) -> Counter[tuple[str, str]]:
    return Counter((split, sample.metadata["label"]) for split, sample in found.values())


def test_shares_of_labels_are_nested_and_unchanged(built: Path, tmp_path: Path) -> None:
    whole = samples(built / "one-shards")
    counts = labels(whole)
    before: set[str] = set()
    for fraction in (0.01, 0.1, 0.5):
        out = made(SUBSET, built / "one-shards", tmp_path / f"{fraction}", "--fraction", fraction)
        found = samples(out)
        assert labels(found) == {kind: math.ceil(round(count * fraction, 9)) for kind, count in counts.items()}
        assert all(whole[key] == value for key, value in found.items())
        assert list(found) == [key for key in whole if key in found]
        assert before < set(found)
        before = set(found)
    manifest = read_manifest(out)
    assert manifest.build["subset"] == {"fraction": 0.5, "by": "label", "splits": [], "seed": 0}
    (origin,) = manifest.build["from"]
    assert origin["corpus"] == "one"
    assert origin["build"] == read_manifest(built / "one-shards").build
    assert (manifest.terms, manifest.labels) == ("of one", ("calm", "happy", "sad"))


def test_a_share_of_people_holds_them_whole(built: Path, tmp_path: Path) -> None:
    whole = samples(built / "one-shards")
    options = ["--stratify-by", "group", "--split", "train"]
    small = samples(made(SUBSET, built / "one-shards", tmp_path / "small", "--fraction", 0.2, *options))
    large = samples(made(SUBSET, built / "one-shards", tmp_path / "large", "--fraction", 0.6, *options))
    assert set(small) < set(large)

    def people(found: dict[str, tuple[str, StoredSample]], split: str) -> Counter[str]:
        return Counter(sample.metadata["group"] for place, sample in found.values() if place == split)

    for found, fraction in ((small, 0.2), (large, 0.6)):
        assert people(found, "test") == people(whole, "test")
        taken, every = people(found, "train"), people(whole, "train")
        assert len(taken) == math.ceil(round(len(every) * fraction, 9))
        assert all(every[person] == count for person, count in taken.items())


def test_subsets_are_the_same_bytes_each_time(built: Path, tmp_path: Path) -> None:
    arguments = ["--fraction", 0.3, "--shard-samples", 20]
    first, second = (made(SUBSET, built / "one-shards", tmp_path / name, *arguments) for name in "ab")
    assert contents(first) == contents(second)
    other = made(SUBSET, built / "one-shards", tmp_path / "c", *arguments, "--seed", 1)
    assert set(samples(other)) != set(samples(first))


def test_people_are_not_divided(built: Path, tmp_path: Path) -> None:
    whole = samples(built / "one-shards")
    found = samples(made(SPLIT, built / "one-shards", tmp_path / "out", "--splits", "train=0.5,val=0.2,probe=0.3"))
    assert set(found) == set(whole)
    people: dict[str, set[str]] = {}
    for split, sample in found.values():
        people.setdefault(split, set()).add(sample.metadata["group"])
    assert {split: len(names) for split, names in people.items()} == {"train": 10, "val": 4, "probe": 6}
    assert len(set().union(*people.values())) == 20
    for key, (split, sample) in found.items():
        assert sample.metadata == whole[key][1].metadata | {"split": split}
        for kind in ("jpg", "cls"):
            assert sample.members[kind] == whole[key][1].members[kind]


def test_one_split_is_divided_by_label(built: Path, tmp_path: Path) -> None:
    whole, counts = samples(built / "one-shards"), labels(samples(built / "one-shards"))
    options = ["--splits", "train=0.75,val=0.25", "--stratify-by", "label", "--split", "train"]
    found = samples(made(SPLIT, built / "one-shards", tmp_path / "out", *options))
    for label in ("calm", "happy", "sad"):
        assert abs(labels(found)["val", label] - counts["train", label] / 4) <= 0.5
    assert [key for key in found if found[key][0] == "test"] == [key for key in whole if whole[key][0] == "test"]
    assert all(found[key] == whole[key] for key in found if found[key][0] != "val")


def test_labels_are_merged_by_name(built: Path, tmp_path: Path) -> None:
    parts = [built / f"{name}-shards" for name in ("one", "two", "three")]
    refused = run(*MERGE, *parts, tmp_path / "out")
    assert refused.returncode == 1
    assert "keys are in more than one folder, for example '" in refused.stderr
    assert not list(tmp_path.iterdir())
    out = made(MERGE, *parts, tmp_path / "out", "--on-collision", "suffix")
    manifest = read_manifest(out)
    assert manifest.labels == ("calm", "happy", "sad", "anger", "zeal", "x")
    assert (manifest.entries, manifest.rejected) == (225, {"empty": 3})
    assert manifest.corpus == "one+two+three"
    assert manifest.terms == "one: of one; two: of two; three: of three"
    found = samples(out)
    assert (
        Counter(split for split, _ in found.values())["test"]
        == Counter(split for split, _ in samples(parts[0]).values())["test"]
    )
    for _, sample in found.values():
        assert sample.members["cls"] == str(manifest.labels.index(sample.metadata["label"])).encode()
    pictures = Counter(sample.members["jpg"] for _, sample in found.values())
    assert pictures == sum((Counter(s.members["jpg"] for _, s in samples(part).values()) for part in parts), Counter())
    kept = samples(parts[0])
    assert all(found[key] == value for key, value in kept.items())
    assert [item["corpus"] for item in manifest.build["from"]] == ["one", "two", "three"]


def test_people_of_one_name_are_told(built: Path, tmp_path: Path) -> None:
    """Numbers of two corpora mean other people; copied as they are, they are one person to remove and to splits."""
    apart = made(SPLIT, built / "two-shards", tmp_path / "apart", "--splits", "train=0.5,test=0.5")
    parts = [built / "one-shards", apart, built / "three-shards"]

    def people(folder: Path) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for split, sample in samples(folder).values():
            found.setdefault(sample.metadata["group"], set()).add(split)
        return found

    done = run(*MERGE, *parts, tmp_path / "out", "--on-collision", "suffix")
    shared, divided = (line for line in done.stdout.splitlines() if line.startswith("note: "))
    folders = Counter(name for part in parts for name in people(part))
    assert f"note: {sum(count > 1 for count in folders.values())} person names" in shared
    assert f"data.shards=[{','.join(map(str, parts))}]" in shared
    count = sum(len(splits) > 1 for splits in people(tmp_path / "out").values())
    assert count
    assert f"note: {count} people (groups) are in more than one split" in divided
    again = made(SPLIT, *divided.partition("simfle shards split ")[2].split())
    assert all(len(splits) == 1 for splits in people(again).values())


def test_people_of_different_names_need_no_word(built: Path, tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", 4)
    assert run(*BUILD, "folder", tmp_path / "faces", tmp_path / "unlabeled").returncode == 0
    done = run(*MERGE, built / "one-shards", tmp_path / "unlabeled", tmp_path / "out")
    assert (done.returncode, "note:" in done.stdout) == (0, False)


def test_merged_shards_can_be_merged_again(built: Path, tmp_path: Path) -> None:
    """The second time a key would get the mark that it got the first time, for the same place."""
    one, two = built / "one-shards", built / "two-shards"
    once = made(MERGE, one, two, tmp_path / "once", "--on-collision", "suffix")
    again = made(MERGE, once, two, tmp_path / "again", "--on-collision", "suffix")
    assert len(samples(again)) == len(samples(one)) + 2 * len(samples(two))
    turned = made(MERGE, two, one, once, tmp_path / "turned", "--on-collision", "suffix")
    assert len(samples(turned)) == len(samples(again)) + len(samples(one))


def test_merging_the_parts_of_a_split_gives_all_again(built: Path, tmp_path: Path) -> None:
    out = made(MERGE, built / "one-shards", built / "three-shards", tmp_path / "out", "--corpus", "both")
    assert read_manifest(out).corpus == "both"
    assert samples(out) == samples(built / "one-shards") | {
        key: (split, StoredSample(key, sample.members | {"cls": b"3"}))
        for key, (split, sample) in samples(built / "three-shards").items()
    }


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0.001, 1), st.floats(0.001, 1))
def test_shares_are_nested(ranks: list[int], first: float, second: float) -> None:
    order = Ranks(np.array(ranks), np.full(len(ranks), max(ranks) + 1))
    small, large = (take_fraction(order, share) for share in sorted((first, second)))
    assert (small <= large).all()
    assert take_fraction(order, 1).all()


@given(st.integers(1, 200), st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_parts_have_their_shares(count: int, weights: list[int]) -> None:
    fractions = [weight / sum(weights) for weight in weights]
    part = assign_ranges(Ranks(np.arange(count), np.full(count, count)), fractions)
    assert (np.diff(part) >= 0).all()
    assert part.max() < len(weights)
    for number, fraction in enumerate(fractions):
        assert abs((part == number).sum() - fraction * count) <= 1


BAD = {
    "a fraction": ([*SUBSET, "{one}", "out", "--fraction", "2"], "--fraction=2"),
    "a way": ([*SUBSET, "{one}", "out", "--fraction", "0.1", "--stratify-by", "age"], "--stratify-by=age"),
    "a split": ([*SUBSET, "{one}", "out", "--fraction", "0.1", "--split", "no"], "no split 'no'"),
    "an output": ([*SUBSET, "{one}", "{two}", "--fraction", "0.1"], "exists"),
    "no shares": ([*SPLIT, "{one}", "out", "--splits", "train"], "NAME=FRACTION"),
    "shares": ([*SPLIT, "{one}", "out", "--splits", "train=0.5,val=0.1"], "sum to 1"),
    "a name": ([*SPLIT, "{one}", "out", "--splits", "a/b=0.5,val=0.5"], "'a-b'"),
    "a taken name": ([*SPLIT, "{one}", "out", "--splits", "train=0.5,test=0.5", "--split", "train"], "'test' exists"),
    "an empty part": ([*SPLIT, "{one}", "out", "--splits", "train=0.999,val=0.001"], "split val would be empty"),
    "one folder": ([*MERGE, "{one}", "out"], "two different folders"),
    "twice the same": ([*MERGE, "{one}", "{one}", "out"], "two different folders"),
    "collisions": ([*MERGE, "{one}", "{two}", "out", "--on-collision", "drop"], "--on-collision"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_get_one_line(
    built: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, tool, *arguments), words = BAD[case]
    places = {name: built / f"{name}-shards" for name in ("one", "two")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [tool, *(word.format(**places) for word in arguments)])
    with pytest.raises(SystemExit) as end:
        import_module(command_module(Path(tool))).main()
    assert end.value.code == 1
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1, errors
    assert words in errors
    assert not list(tmp_path.iterdir())


def test_damage_is_not_copied(built: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(built / "three-shards", tmp_path / "shards"))
    tar = next(shards.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    done = run(*SUBSET, shards, tmp_path / "out", "--fraction", 1)
    assert done.returncode == 1
    assert "the manifest says" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_what_a_killed_copy_left_is_thrown_away(built: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "train-000000.tar").write_bytes(b"half")
    out = made(SUBSET, built / "three-shards", tmp_path / "out", "--fraction", 1)
    assert json.loads((out / "manifest.json").read_bytes())["build"]["subset"]["fraction"] == 1
    (tmp_path / "other.partial" / "work").mkdir(parents=True)
    refused = run(*SUBSET, built / "three-shards", tmp_path / "other", "--fraction", 1)
    assert refused.returncode == 1
    assert "unfinished build" in refused.stderr
