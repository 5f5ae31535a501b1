"""MATLAB 5 files as scipy writes them, whole and hurt."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.io import savemat

from shards.sources.containers import matlab
from shards.sources.containers.matlab import read_variables

pytestmark = pytest.mark.slow

KINDS = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
NUMBERS = st.sampled_from(KINDS).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=5))
)


def cell(value: object) -> np.ndarray:
    """A cell array of one."""
    made = np.empty((1, 1), dtype=object)
    made[0, 0] = value
    return made


@given(
    NUMBERS,
    st.lists(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), min_size=1, max_size=9), min_size=1),
    st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_numbers_and_texts_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, texts: list[str], packed: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "a.mat"
    cells = np.array(texts, dtype=object)[:, None]
    savemat(file, {"other": {"a": 1}, "numbers": values, "names": cells}, do_compression=packed)
    numbers, lists = read_variables(file, ["numbers", "absent"], ["names"])
    np.testing.assert_array_equal(numbers.pop("numbers"), values, strict=True)
    assert lists.pop("names") == texts
    assert not numbers
    assert not lists


@pytest.mark.parametrize(
    ("value", "wanted", "words"),
    [
        (np.array([[1 + 2j]]), "numbers", "not a real numeric array"),
        ({"a": 1}, "numbers", "not a real numeric array"),
        (cell("b"), "numbers", "not a real numeric array"),
        (np.ones((2, 2)), "texts", "not a cell"),
        (np.array([[np.ones(3)], ["a"]], dtype=object), "texts", "not a text"),
        (cell(cell("b")), "texts", "not a text"),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, value: object, wanted: str, words: str) -> None:
    savemat(tmp_path / "a.mat", {"it": value})
    assert read_variables(tmp_path / "a.mat", ["another"], []) == ({}, {})
    with pytest.raises(ValueError, match=words):
        read_variables(tmp_path / "a.mat", **{"numbers": [], "texts": [], wanted: ["it"]})


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_file_is_refused(tmp_path: Path, packed: bool) -> None:
    file = tmp_path / "a.mat"
    savemat(file, {"it": np.arange(50.0)[None]}, do_compression=packed)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        if length == 128:  # a header and no variables
            assert read_variables(file, ["it"], []) == ({}, {})
            continue
        with pytest.raises(ValueError, match=r"\w"):
            read_variables(file, ["it"], [])


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "MOST", 1 << 16)
    savemat(tmp_path / "a.mat", {"it": np.zeros((100, 1000))}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 1 << 12
    with pytest.raises(ValueError, match="larger"):
        read_variables(tmp_path / "a.mat", ["it"], [])


def test_more_numbers_than_any_list_has_are_refused(tmp_path: Path) -> None:
    """A byte of the file may stand for a number of eight."""
    savemat(tmp_path / "a.mat", {"it": np.zeros((1, matlab.MOST_NUMBERS + 1), np.uint8)}, do_compression=True)
    with pytest.raises(ValueError, match="the maximum is"):
        read_variables(tmp_path / "a.mat", ["it"], [])
