"""Fixtures that several rooms share."""

import atexit
import gc
import os
import signal
from pathlib import Path

import pytest
from drawn import make_faces
from hypothesis import settings

# A process that a shell starts in the background ignores SIGINT, and hands that on to those that tests send one to.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one order of sums, and two cores for several processes
# The same cases each time: what a run finds, the next one finds, too. HYPOTHESIS_PROFILE=random looks for others.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
gc.disable()  # until all modules are imported: a tenth of the time goes into looking for garbage among them


def pytest_collection_finish() -> None:
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.enable()


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 240 drawn faces of 20 people, three quarters in split train: several shards of 32 samples."""
    out = tmp_path_factory.mktemp("shards") / "faces"
    make_faces(out, "--people", "20", "--shard-samples", "32")
    return out
