"""One cluster of four nodes for the tests of a file, and one undisturbed run to compare with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import jobs
from cluster.slurm import Cluster, cluster, missing


@pytest.fixture(scope="module")  # not of the session: its thread that hurries jobs on starts programs
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


@pytest.fixture(scope="module")
def undisturbed(four_nodes: Cluster, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 steps on four nodes that nothing happened to."""
    job = jobs.submit(four_nodes, faces, tmp_path_factory.mktemp("undisturbed") / "run", "train.steps=16")
    job.wait_end()
    assert job.starts == 1
    return job.run
