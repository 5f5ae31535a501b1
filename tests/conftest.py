"""Fixtures shared by all test folders."""

import atexit
import csv
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.synthetic_shards import make_faces
from hypothesis import settings

# A background process of a shell ignores SIGINT and passes that on to processes that tests send a signal to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the same for nohup
os.environ.setdefault("OMP_NUM_THREADS", "1")  # deterministic order of sums, and two cores for several processes
# The same cases in each run, so failures are reproducible. HYPOTHESIS_PROFILE=random generates others.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
gc.disable()  # until all modules are imported: garbage collection takes a tenth of that time


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out modules that are slow as a whole without importing them: imports take half of `make test-fast`."""
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() or None
    return None


def pytest_collection_finish() -> None:
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.enable()


# Set once for a library that reads it at its start, or by a library; it remains, as in a notebook that trains.
STAYS = {"DS_ACCELERATOR", "CUBLAS_WORKSPACE_CONFIG", "KINETO_LOG_LEVEL", "PYTORCH_NVML_BASED_CUDA_CHECK"}
STAYS |= {"LD_LIBRARY_PATH", "TORCHINDUCTOR_CACHE_DIR"}  # set by importing OpenCV and torch
STAYS |= {"KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"}  # set by importing scikit-learn
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def leaves_the_process_as_it_was() -> Iterator[None]:
    """Fail a test that leaves a changed environment, folder, signal handler or torch mode to later tests in its worker.

    Test order per worker differs from run to run. Logging, which commands configure, is restored.
    """
    before, loggers = _process() | _torch(), [logging.getLogger(name) for name in ("", "simfle", "shards")]
    levels, handlers = [logger.level for logger in loggers], [list(logger.handlers) for logger in loggers]
    yield
    for logger, level, own in zip(loggers, levels, handlers, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = own
    after = _process() | (_torch() if "torch threads" in before else {})
    left = {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not left


def _process() -> dict[str, object]:
    os.umask(umask := os.umask(0))
    names = os.environ.keys() - STAYS - {"PYTEST_CURRENT_TEST"}
    found: dict[str, object] = {name: os.environ[name] for name in names}
    found |= {"folder": Path.cwd(), "umask": umask, "longest field": csv.field_size_limit()}
    if threading.current_thread() is threading.main_thread():
        found |= {number.name: signal.getsignal(number) for number in SIGNALS}
    return found


def _torch() -> dict[str, object]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "torch threads": torch.get_num_threads(),
        "torch type": torch.get_default_dtype(),
        "torch gradients": torch.is_grad_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch process group": torch.distributed.is_initialized(),
    }


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 240 synthetic faces of 20 people, three quarters in split train: several shards of 32 samples."""
    out = tmp_path_factory.mktemp("shards") / "faces"
    make_faces(out, "--people", "20", "--shard-samples", "32")
    return out
