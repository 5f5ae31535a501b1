"""A short soak: a few random faults over a run and over a build. `make soak` makes it a hundred each."""

from pathlib import Path

from soak.random_faults import soak


def test_soak(tmp_path: Path) -> None:
    found = soak(tmp_path, 4, 6, seed=0)
    assert {name: facts["faults"] >= 4 for name, facts in found.items()} == {"build": True, "run": True}
