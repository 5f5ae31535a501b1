"""One cluster of four nodes for all tests of this room, and one undisturbed run to compare with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import jobs
from cluster.slurm import Cluster, cluster, missing


@pytest.fixture(scope="session")
def four_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"no Slurm cluster: {reason}")
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def slurm(four_nodes: Cluster) -> Iterator[Cluster]:
    """The cluster, with nothing running on it before and after."""
    four_nodes.clear()
    yield four_nodes
    four_nodes.clear()


@pytest.fixture(scope="session")
def undisturbed(four_nodes: Cluster, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 steps on four nodes that nothing happened to."""
    job = jobs.submit(four_nodes, faces, tmp_path_factory.mktemp("undisturbed") / "run", "train.steps=16")
    job.wait_end()
    assert job.starts == 1
    return job.run
