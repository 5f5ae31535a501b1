import itertools
import random
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.build.exclusion import normalize_person
from shards.build.plan import BuildPlan, make_plan
from shards.entry import Entry, Rejected
from shards.errors import UserError
from shards.rules import KEY_LENGTH, EntryRules, archive_key, assign_split, label_order, normalize_split, resolve_entry
from shards.sources.generic.folder import infer_label_and_split


def entry(key: str, **known: str) -> Entry:
    return Entry(key, key, Path("/images") / key, **known)


@given(st.text(min_size=1), st.floats(0, 0.49), st.floats(0, 0.5), st.integers(0, 5))
def test_the_split_is_the_groups_alone(group: str, val: float, test: float, seed: int) -> None:
    rules = EntryRules(val_fraction=val, test_fraction=test, split_seed=seed)
    settled = {resolve_entry(entry(key, group=group), rules).split for key in ("a.jpg", "b/c.png", "ü")}
    assert settled == {assign_split(group, rules)}


def test_fractions_are_kept_and_seeds_differ() -> None:
    def draw(seed: int) -> list[str]:
        return [
            assign_split(str(n), EntryRules(val_fraction=0.2, test_fraction=0.1, split_seed=seed)) for n in range(5000)
        ]

    first = draw(0)
    assert abs(first.count("val") / 5000 - 0.2) < 0.02
    assert abs(first.count("test") / 5000 - 0.1) < 0.02
    assert first == draw(0)
    assert first != draw(1)


def test_a_larger_fraction_moves_nobody_back() -> None:
    """Cutting more off must not put a validation person into training: fractions are nested."""
    for number in range(300):
        if assign_split(str(number), EntryRules(val_fraction=0.1)) == "val":
            assert assign_split(str(number), EntryRules(val_fraction=0.3)) == "val"


def test_only_train_is_cut() -> None:
    rules = EntryRules(val_fraction=0.9)
    assert {resolve_entry(entry(f"{n}", split="Test"), rules).split for n in range(50)} == {"test"}
    assert {resolve_entry(entry(f"{n}", split="Training"), rules).split for n in range(50)} == {"train", "val"}


@pytest.mark.parametrize("name", ["测试", "тест", "- 验证"])
def test_a_split_that_cannot_be_written_is_not_train(name: str) -> None:
    """训练 and 测试 would both lose all their letters: test images among those that are trained on."""
    item = resolve_entry(entry("a.jpg", split=name), EntryRules())
    assert isinstance(item, Rejected)
    assert (item.reason, name in item.detail) == ("bad_row", True)
    placed_item = infer_label_and_split(f"{name}/a.jpg", "a.jpg", b"", class_folders=False, split_folders=True)
    assert isinstance(placed_item, Rejected)
    assert {
        resolve_entry(entry("a.jpg", split=text), EntryRules()).split for text in ("", " - ", "Train", "训练 train")
    } == {"train"}


def test_the_group_is_found_in_the_path() -> None:
    rules = EntryRules(group_pattern=r"^(.*)_\d+\.jpg$")
    assert resolve_entry(entry("films/Ann_Lee_0012.jpg"), rules).group == "films/Ann_Lee"
    assert resolve_entry(entry("other.jpg"), rules).group is None


@pytest.mark.parametrize("pattern", [r"^.*_\d+$", "(a)(b)", "(unclosed"])
def test_a_pattern_without_one_group_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="--group-pattern"):
        EntryRules(group_pattern=pattern)


@pytest.mark.parametrize("fractions", [(-0.1, 0), (1, 0), (0, 1.5), (0.5, 0.5), (float("nan"), 0)])
def test_fractions_that_cannot_be_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="fraction"):
        EntryRules(val_fraction=fractions[0], test_fraction=fractions[1])


def test_labels_are_normalised_and_asked_for() -> None:
    rules = EntryRules(labeled=True, labels=("happiness",))
    assert resolve_entry(entry("a", label=" HAPPINESS "), rules).label == "happiness"
    assert resolve_entry(entry("a", label="  "), rules) == Rejected("a", "unlabeled")
    assert resolve_entry(entry("a", label="fear"), rules) == Rejected("a", "unknown_label", "fear")
    assert resolve_entry(entry("a"), EntryRules()).label is None


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_two_spellings_of_a_name_are_one(form: str) -> None:
    """A Mac decomposes the accents of file names."""

    def spelt(text: str) -> str:
        return unicodedata.normalize(form, text)

    rules = EntryRules(labels=("überraschung",), val_fraction=0.3, test_fraction=0.3)
    plain = resolve_entry(entry("1.jpg", label="Überraschung", group="José García"), rules)
    found = resolve_entry(entry("1.jpg", label=spelt("ÜBERRASCHUNG"), group=spelt("José García")), rules)
    assert (found.label, found.group, found.split) == ("überraschung", "José García", plain.split)
    for pattern in (r"^(\w+)_\d", r"^(José)", spelt(r"^(José)")):
        assert resolve_entry(entry(spelt("José_1.jpg")), EntryRules(group_pattern=pattern)).group == "José"
    assert normalize_person(spelt("José García")) == "josé_garcía"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\u200b\u200c\u200d\u2060\ufeff")))
def test_names_of_one_spelling_stay_as_they_are(name: str) -> None:
    name = unicodedata.normalize("NFC", name)
    found = resolve_entry(entry("a", label=name, group=name), EntryRules())
    assert (found.label, found.group) == (name.strip().casefold() or None, name)


def test_names_that_are_no_utf8_have_a_spelling_too() -> None:
    name = "caf\udce9 e\u0301"
    found = resolve_entry(entry("a", label=name, group=name), EntryRules())
    assert (found.label, found.group) == (r"caf\udce9 é", "caf\udce9 é")


def test_labels_are_ordered_as_people_count() -> None:
    assert label_order(["10", "9", "1"], ()) == ("1", "9", "10")
    assert label_order(["b", "10", "a"], ()) == ("10", "a", "b")
    assert label_order(["a"], ("b", "a")) == ("b", "a")


@given(st.text(min_size=1, max_size=300))
def test_a_key_fits_into_a_tar_header(name: str) -> None:
    key = archive_key(name)
    assert 0 < len(key) <= KEY_LENGTH
    assert all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in key)
    assert key == archive_key(name)


def test_keys_read_like_the_paths_they_come_from() -> None:
    assert archive_key("train/happy/Ann Lee.v2.jpg") == "train_happy_Ann_Lee_v2"
    assert archive_key("face.0001") == "face_0001"  # no extension: digits name the image
    assert archive_key("a" * 200 + ".jpg") != archive_key("a" * 200 + "b.jpg")


@given(st.text(max_size=20))
def test_a_split_is_a_file_name(name: str) -> None:
    split = normalize_split(name)
    assert split or not name.isascii()
    assert split in ("", normalize_split(split))
    assert all(letter.isascii() and (letter.isalnum() or letter == "-") for letter in split)


def listing(plan: Path) -> list[tuple[str, str, str | None]]:
    with closing(BuildPlan(plan)) as opened:
        return [(s.name, item.key, item.entry.label) for s in opened.shards() for item in opened.entries(s)]


def test_the_order_of_the_listing_does_not_matter(tmp_path: Path) -> None:
    entries = [entry(f"c{n % 3}/{n}.jpg", label=str(n % 3), group=str(n % 17)) for n in range(200)]
    rules = EntryRules(val_fraction=0.3)
    make_plan(tmp_path / "a", entries, rules, {}, 30)
    random.Random(3).shuffle(entries)
    make_plan(tmp_path / "b", entries, rules, {}, 30)
    assert listing(tmp_path / "a") == listing(tmp_path / "b")
    labels = [label for _, _, label in listing(tmp_path / "a")]
    runs = sum(first != second for first, second in itertools.pairwise(labels))
    assert runs > 100  # sorted by class it would be two


def test_shards_are_of_nearly_equal_size(tmp_path: Path) -> None:
    make_plan(tmp_path / "p", [entry(f"{n}") for n in range(103)], EntryRules(), {}, 25)
    with closing(BuildPlan(tmp_path / "p")) as plan:
        sizes = [shard.entries for shard in plan.shards()]
        assert sum(sizes) == plan.planned() == 103
        assert sorted(sizes) == [20, 20, 21, 21, 21]
        assert [len(list(plan.entries(shard))) for shard in plan.shards()] == sizes


def test_repeated_and_conflicting_rows(tmp_path: Path) -> None:
    entries = [
        entry("same", label="a"),
        entry("same", label="A "),
        entry("fight", label="a"),
        entry("fight", label="b"),
        entry("fight", label="a"),
        entry("fine", label="b"),
        entry("bare"),
    ]
    make_plan(tmp_path / "p", entries, EntryRules(labeled=True), {}, 10)
    with closing(BuildPlan(tmp_path / "p")) as plan:
        written = sorted(item.entry.key for shard in plan.shards() for item in plan.entries(shard))
        assert written == ["fine", "same"]
        assert plan.reasons() == {"conflicting_label": 3, "repeated": 1, "unlabeled": 1}
        assert plan.count() == plan.planned() + len(list(plan.rejected())) == 7


def test_names_that_look_alike_get_keys_of_their_own(tmp_path: Path) -> None:
    names = ["a b.jpg", "a_b.jpg", "a.b.jpg", "a_b.png", "a/b.jpg", "plain.jpg"]
    for path, order in ((tmp_path / "p", names), (tmp_path / "q", names[::-1])):
        make_plan(path, [entry(name) for name in order], EntryRules(), {}, 10)
    keys = [key for _, key, _ in listing(tmp_path / "p")]
    assert len(set(keys)) == len(names)
    assert "plain" in keys
    assert sum(key.startswith("a_b_") for key in keys) == 5
    assert listing(tmp_path / "p") == listing(tmp_path / "q")


def test_an_entry_comes_back_from_the_plan_as_it_went_in(tmp_path: Path) -> None:
    odd = "caf\udce9/\u540d.jpg"  # a name that is not UTF-8, as file systems allow
    one = Entry(
        odd, odd, Path("/x") / odd, "a", "val", "g", (1.0, 2.0, 3.0, 4.5), ((1.0, 2.0),), {"age": 3, "votes": [1, 2]}
    )
    two = Entry("bytes", "bytes", b"\0\xff", "a", "val", "g")
    make_plan(tmp_path / "p", [one, two], EntryRules(), {}, 10)
    with closing(BuildPlan(tmp_path / "p")) as plan:
        found = {item.entry.key: item.entry for shard in plan.shards() for item in plan.entries(shard)}
    assert found == {odd: one, "bytes": two}
