"""Paired tests: a real difference is found, chance is not, people count once, samples are matched by name."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_result import result

from simfle.commands.compare import compare as show
from simfle.errors import UserError
from simfle.eval.analysis.compare import compare, mcnemar
from simfle.eval.analysis.results import LANDMARKS, Result, Samples, write_result
from simfle.eval.analysis.summary import comparisons, grouped, rows

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 400)


def made(right: np.ndarray, name: str = "a", people: int = 400, seed: int = 0) -> Result:
    """Return a result that gets the marked samples right, with a number of people."""
    predicted = np.where(right, LABELS, 1 - LABELS).tolist()
    keys = [f"k{number}" for number in range(len(LABELS))]
    groups = [f"p{number * people // len(LABELS)}" for number in range(len(LABELS))]
    samples = Samples(keys, groups, LABELS.tolist(), predicted)
    return result(backbone={"id": name}, samples=samples, seed=seed)


def test_mcnemar_by_hand() -> None:
    """9 samples only the first got right, 1 only the second: p = 2 (1 + 10) / 2^10."""
    labels = np.zeros(30, int)
    first, second = labels.copy(), labels.copy()
    second[:9], first[9], first[10:15], second[10:15] = 1, 1, 1, 1
    assert mcnemar(labels, first, second) == pytest.approx(22 / 1024)
    assert mcnemar(labels, first, first) == 1


def test_a_real_difference_is_found_and_none_is_not() -> None:
    better, worse, like = RNG.random(400) < 0.8, RNG.random(400) < 0.65, RNG.random(400) < 0.8
    found = compare([made(better)], [made(worse, "b")], 400)
    assert found.difference == pytest.approx(made(better).labels().size and _balanced(better) - _balanced(worse))
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.p < 0.01
    assert found.mcnemar is not None
    assert found.mcnemar < 0.01
    assert found.first_is_better
    none = compare([made(better)], [made(like, "b")], 400)
    assert none.interval[0] < 0 < none.interval[1]
    assert none.p > 0.05
    back = compare([made(worse, "b")], [made(better)], 400)
    assert back.difference == -found.difference


def _balanced(right: np.ndarray) -> float:
    return float(np.mean([right[label == LABELS].mean() for label in (0, 1)]))


def test_people_count_as_one() -> None:
    """One of four people is always recognized better: a difference in 100 images, but of one person."""
    base = RNG.random(400) < 0.6
    better = base | (np.arange(400) < 100)
    alone = compare([made(better)], [made(base, "b")], 300)
    whole = compare([made(better, people=4)], [made(base, "b", people=4)], 300)
    assert alone.p < 0.01
    assert whole.p > 0.2


def test_seeds_are_averaged_and_a_backbone_with_one_is_used_for_all() -> None:
    runs = [RNG.random(400) < share for share in (0.7, 0.8, 0.75)]
    seeds = [made(right, seed=seed) for seed, right in enumerate(runs)]
    other = RNG.random(400) < 0.5
    found = compare(seeds, [made(other, "b")], 100)
    assert found.difference == pytest.approx(np.mean([_balanced(right) for right in runs]) - _balanced(other))


def test_every_run_counts_equally_in_the_permutation_test() -> None:
    """Two runs against three equal six against six, each of them repeated."""
    first = [made(RNG.random(400) < share, seed=seed) for seed, share in enumerate((0.9, 0.6))]
    second = [made(RNG.random(400) < share, "b", seed=seed) for seed, share in enumerate((0.7, 0.7, 0.76))]
    assert compare(first, second, 100).p == compare(first * 3, second * 2, 100).p


def test_samples_are_matched_by_name_not_by_place() -> None:
    first = made(RNG.random(400) < 0.7)
    turned = {name: values[::-1] for name, values in vars(first.samples).items()}
    found = compare([first], [replace(first, samples=Samples(**turned))], 20)
    assert (found.difference, found.interval, found.p) == (0, (0, 0), 1)


def test_less_is_better_of_errors() -> None:
    keys = list(map(str, range(50)))
    low, high = (
        result(kind=LANDMARKS, metric="nme", samples=Samples(keys, keys, [1.0] * 50, values.tolist()))
        for values in (RNG.random(50) * 0.05, RNG.random(50) * 0.05 + 0.02)
    )
    found = compare([low], [high], 200)
    assert found.difference < 0
    assert found.first_is_better
    assert found.p < 0.01
    assert found.mcnemar is None


def test_what_cannot_be_compared() -> None:
    first = made(LABELS == 0)
    fewer = Samples(*(values[:5] for values in vars(first.samples).values()))
    with pytest.raises(UserError, match="different test samples"):
        compare([first], [replace(first, samples=fewer)])
    with pytest.raises(UserError, match="different benchmarks or protocols"):
        compare([first], [replace(first, protocol="knn")])
    flipped = replace(first.samples, labels=[1 - label for label in first.samples.labels])
    with pytest.raises(UserError, match="different labels for"):
        compare([first], [replace(first, samples=flipped)])


def test_seeds_of_other_settings_are_not_averaged() -> None:
    """Compare settings as stored in files, where a tuple is a list."""
    first = replace(made(LABELS > 0), settings={"size": 64, "fast": {"epochs": 40, "lrs": (0.1, 1.0)}})
    second = replace(first, seed=1, settings={"size": 64, "fast": {"epochs": 40, "lrs": [0.1, 1.0]}})
    assert [len(seeds) for seeds in grouped([first, second]).values()] == [2]
    other = replace(first, seed=1, settings={"size": 64, "fast": {"epochs": 2, "lrs": [0.1, 1.0]}})
    with pytest.raises(UserError, match=r"differ in fast\.epochs \(40 and 2\), so they cannot"):
        grouped([first, other])
    scaled = replace(first, seed=1, backbone={**first.backbone, "calibrated": True})
    with pytest.raises(UserError, match=r"differ in calibrated \(None and True\)"):
        grouped([first, scaled])


def test_one_name_for_several_sets_of_data_is_told_apart() -> None:
    """All user data sets are called own, and a set without a removed person is a different one."""

    def of(shards: str, samples: str, seed: int = 0) -> Result:
        some = made(LABELS > 0, seed=seed)
        about = {"id": "a", "kind": "online", "model": "resnet18"}
        return replace(some, backbone=about, data={**some.data, "shards": [shards]}, settings={"data": [samples]})

    one, moved, other, less = of("a/faces", "1"), of("b/faces", "1", 1), of("photos", "2"), of("photos", "3")
    assert set(grouped([one, moved])) == {("rafdb", "linear", "a")}
    assert set(grouped([one, moved, other])) == {("rafdb (faces)", "linear", "a"), ("rafdb (photos)", "linear", "a")}
    names = [benchmark for benchmark, _, _ in grouped([one, other, less])]
    assert len(set(names)) == 3
    assert names[0] == "rafdb (faces)"
    assert all(re.fullmatch(r"rafdb \([0-9a-f]{4}\)", name) for name in names[1:])
    assert [row.benchmark for row in rows([one, other, less], 20)] == names
    assert comparisons([replace(one, backbone={**one.backbone, "id": "z"}), other], 20) == []


def test_methods_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of one method are averaged under its name; the difference is to the baseline method."""
    shares = {"ours": (0.9, 0.8), "theirs": (0.6, 0.7)}
    scores = {}
    for name, runs in shares.items():
        right = [RNG.random(400) < share for share in runs]
        scores[name] = np.mean([_balanced(each) for each in right])
        for seed, each in enumerate(right):
            one = made(each, f"{name}-{seed}-online-{seed:08x}")
            one = replace(
                one,
                metrics={"balanced_accuracy": _balanced(each)},
                backbone={**one.backbone, "kind": "online", "model": "resnet10t"},
            )
            write_result(tmp_path / f"{name}-{seed}", one)
            # An evaluation also writes a random baseline to the same folder.
            beside = replace(made(LABELS < 0, "random"), metrics={"balanced_accuracy": 0.0})
            beside = replace(beside, backbone={"id": "random", "kind": "random", "model": "resnet10t"})
            write_result(tmp_path / f"{name}-{seed}", beside)
    show([f"{name}={tmp_path}/{name}-*" for name in shares], against="theirs", resamples=50)
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    table = {line[3]: dict(zip(lines[0], line, strict=False)) for line in lines[2:]}
    assert lines[0][-2] == "minus theirs"
    for name, score in scores.items():
        assert table[name]["runs"] == "2"
        assert table[name]["score"].split()[0] == f"{score:.3f}"
    assert table["ours"]["minus theirs"].startswith(f"{scores['ours'] - scores['theirs']:+.3f} (")
    assert float(table["ours"]["p"]) < 0.05
    show([f"ours={tmp_path}/ours-0", f"ours={tmp_path}/ours-1"], against="", resamples=50)
    assert f"| ours | 2 | {scores['ours']:.3f}" in capsys.readouterr().out  # one folder per run
    show([f"random={tmp_path}/*/random"], against="", resamples=50)
    assert "| random | 4 | 0.000" in capsys.readouterr().out  # with nothing else there, random backbones are meant
    write_result(tmp_path / "ours-0", replace(one, backbone={**one.backbone, "id": "another-checkpoint"}))
    with pytest.raises(
        UserError, match=r"ours-0 holds results of 2 backbones.*ours-0/another-checkpoint, .*ours-0-online"
    ):
        show([f"ours={tmp_path}/ours-*"], against="", resamples=50)
    with pytest.raises(UserError, match="nothing: no results in"):
        show([f"nothing={tmp_path}/none"], against="", resamples=50)
    with pytest.raises(UserError, match=r"--against=byol: unknown method\. Fix: choose one of ours"):
        show([f"ours={tmp_path}/ours-1"], against="byol", resamples=50)
