"""One cluster of four nodes per test file, and one undisturbed run for comparison."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import jobs
from cluster.slurm import Cluster, cluster, missing


@pytest.fixture(scope="module")  # not session scope: its thread that speeds up jobs starts programs
def four_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"no Slurm cluster: {reason}")
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def slurm(four_nodes: Cluster) -> Iterator[Cluster]:
    """Return the cluster, idle before and after."""
    four_nodes.clear()
    yield four_nodes
    four_nodes.clear()


@pytest.fixture(scope="module")
def undisturbed(four_nodes: Cluster, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an undisturbed run of 16 steps on four nodes."""
    job = jobs.submit(four_nodes, faces, tmp_path_factory.mktemp("undisturbed") / "run", "train.steps=16")
    job.wait_end()
    assert job.starts == 1
    return job.run
