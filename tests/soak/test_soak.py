"""A short soak: a few random faults over a run and over a build, and what a run leaves open. `make soak` does more."""

import json
from pathlib import Path

from distributed import runs
from faults import story as telling
from faults.nursery import Nursery
from soak.random_faults import soak

ROOM = Path(__file__).parent


def test_soak(tmp_path: Path) -> None:
    found = soak(tmp_path, 4, 6, seed=0)
    assert {name: facts["faults"] >= 4 for name, facts in found.items()} == {"build": True, "run": True}


def test_growth(faces: Path, tmp_path: Path) -> None:
    """Six times as many steps, checkpoints and pictures leave as many files, threads and shared memory open."""
    nursery = Nursery(tmp_path / "tmp", *telling.MODULES)
    settings = [*runs.SETTINGS, *telling.SMALL, f"data.shards=[{faces}]"]
    words = [str(ROOM / "counted.py"), str(tmp_path / "runs"), *settings]
    child = nursery.start([*words, "train.checkpoint_every=2", "train.images_every=2"], tmp_path / "log")
    assert child.wait() == 0, child.output
    nursery.close()
    found = [json.loads(line[6:]) for line in child.log.read_text().splitlines() if line.startswith("open: ")]
    assert len(found) == 3
    assert found[2] == found[1]
