"""A short soak: a few random faults over a run and over a build, and what a run leaves open. `make soak` does more."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import runs
from faults import scenario as telling
from faults.fork_server import ForkServer
from soak.random_faults import nursery_of, soak


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def nursery(folder: Path) -> Iterator[ForkServer]:
    parent = nursery_of(folder)
    yield parent
    parent.close()


def test_soak(nursery: ForkServer, folder: Path) -> None:
    found = soak(folder, nursery, 4, 6, seed=0)
    assert {name: facts["faults"] >= 4 for name, facts in found.items()} == {"build": True, "run": True}


def test_growth(nursery: ForkServer, faces: Path, tmp_path: Path) -> None:
    """Six times as many steps, checkpoints and pictures leave as many files, threads and shared memory open."""
    settings = [*runs.SETTINGS, *telling.SMALL, f"data.shards=[{faces}]"]
    words = [str(Path(__file__).with_name("resource_counts.py")), str(tmp_path / "runs"), *settings]
    child = nursery.start([*words, "train.checkpoint_every=2", "train.log_images_every=2"], tmp_path / "log")
    assert child.wait() == 0, child.output
    found = [json.loads(line[6:]) for line in child.log.read_text().splitlines() if line.startswith("open: ")]
    assert len(found) == 3
    assert found[2] == found[1]
