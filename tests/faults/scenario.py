"""Scenario of a run with a fault: start it, wait for a step, inject the fault, and check that nothing was lost."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import runs
from faults.fork_server import Child, ForkServer

from shards.format.index import index_tar, write_index

MODULES = (
    *("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"),  # the latter imports torch's compiler, for seconds
    *(
        "simfle.train.pretrain",
        "simfle.train.telemetry.reconstructions",
        "simfle.data.backends.opencv",
        "simfle.models.methods.simfle",
        "simfle.export.timm",
    ),
    *("simfle.commands.app", "rich.progress", "omegaconf", "timm.models.byobnet"),
)
# The smallest model with all parts: 1.3 M parameters, about 30 ms per step on an idle core.
SMALL = (
    "views.size=32",
    "views.face_size=32",
    "model.backbone=test_resnet",
    "model.facemae.embed_dim=24",
    "train.global_batch=8",
    "train.log_sample_ids=true",
)
STEPS = 10
LENGTH = (f"train.steps={STEPS}", "train.checkpoint_every=2")


class Scenario:
    """A run in `run` at step 4, with checkpoints of steps 2 and 4. `faces`: its own copy of the shards."""

    def __init__(self, nursery: ForkServer, folder: Path, base: Path) -> None:
        self.nursery, self.folder = nursery, folder
        self.run = shutil.copytree(base / "run", folder / "run")
        self.faces = shutil.copytree(base / "faces", folder / "faces")

    def start(self, *settings: str, **how: Any) -> Child:
        """Start the run again; `how` as in `nursery.Order`."""
        words = runs.command(1, self.faces, self.run, *SMALL, *LENGTH, *settings)[1:]
        return self.nursery.start(words, self.folder / f"log-{time.monotonic_ns()}", **how)

    def reach(self, child: Child, step: int, seconds: float = 120) -> None:
        """Wait until the run has logged `step`."""
        end = time.monotonic() + seconds
        while not any(line["step"] >= step for line in runs.metrics(self.run)):
            assert child.poll() is None, child.output
            assert time.monotonic() < end, f"step {step} not reached"
            time.sleep(0.005)

    def stopped(self, child: Child, words: str) -> None:
        """Check that the run ended with one clear last line and exit code 1."""
        assert child.wait() == 1, child.output
        assert child.last_line.startswith("error: "), child.output
        assert words in child.last_line, child.output
        assert "Traceback" not in child.output

    def finish(self, *settings: str) -> str:
        """Start it again without a fault, to its end, and return its output."""
        child = self.start(*settings)
        assert child.wait() == 0, child.output
        return child.output

    @property
    def checkpoints(self) -> list[int]:
        """Return the steps of the complete checkpoints, whose hashes must match their markers."""
        steps = []
        for marker in sorted(self.run.glob("checkpoints/step-*/COMPLETE")):
            for name, facts in json.loads(marker.read_text()).items():
                assert hashlib.sha256((marker.parent / name).read_bytes()).hexdigest() == facts["sha256"]
            steps.append(int(marker.parent.name[5:]))
        return steps

    @property
    def newest(self) -> Path:
        return max(self.run.glob("checkpoints/step-*"))


def check_same(run: Path, undisturbed: Path) -> None:
    """Check for bitwise equal losses at each step, and the same samples with the same pixels in the same order."""
    assert [line["step"] for line in runs.metrics(run)] == [line["step"] for line in runs.metrics(undisturbed)]
    assert runs.losses(run) == runs.losses(undisturbed)
    assert runs.samples(run) == runs.samples(undisturbed)


def check_tidy(run: Path) -> None:
    """Check that a finished run leaves only documented files."""
    left = {path.name for path in run.iterdir()} - {
        *(
            "config.yaml",
            "versions.json",
            "run.json",
            "metrics.jsonl",
            "corrupt_samples.jsonl",
            "samples",
            "tensorboard",
        ),
        *("checkpoints", "heartbeats", ".lock", "images", "shards.json", "initial.json"),
    }
    assert not left
    assert not list((run / "heartbeats").iterdir())
    assert all(path.name.startswith("step-") for path in (run / "checkpoints").iterdir())


def session(pid: int) -> list[int]:
    """Return live processes of the session that `pid` leads or led."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(text[3]) == pid and text[0] not in "ZX":
            found.append(int(folder.name))
    return found


def gone(check: Any, seconds: float = 120) -> bool:
    """Return whether `check` becomes empty in time: a process takes a moment to end."""
    end = time.monotonic() + seconds
    while check() and time.monotonic() < end:
        time.sleep(0.02)
    return not check()


def shared_memory() -> set[str]:
    """Return files of /dev/shm that no live process uses."""
    files = {path.name for path in Path("/dev/shm").iterdir() if path.is_file()}
    if not files:
        return files
    used = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            used.append(maps.read_text())
        except OSError:
            continue
    text = "".join(used)
    return {name for name in files if f"/dev/shm/{name}" not in text}


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[None]:
    """Mount a small disk at `folder`; skip if this user may not mount one."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs a user who may mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only by a mount, since root ignores permission bits."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("needs a user who may mount a file system")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def kill(child: Child) -> None:
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def exchange_images(tar: Path) -> None:
    """Swap the images of samples: a tar of the same size and count, with a matching index."""
    with tarfile.open(tar) as archive:
        members = [(item, archive.extractfile(item).read()) for item in archive]  # type: ignore[union-attr]
    images = [content for item, content in members if item.name.endswith(".jpg")]
    size = tar.stat().st_size
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for item, content in members:
            told = images.pop() if item.name.endswith(".jpg") else content
            item.size = len(told)
            archive.addfile(item, io.BytesIO(told))
    assert tar.stat().st_size == size
    write_index(tar.with_suffix(".idx"), index_tar(tar))
