"""Checks of this machine: programs and libraries, its GPU, its limits, a folder's disk, Slurm."""

import importlib
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from shards.io.atomic import open_regular
from simfle.doctor.findings import Finding, broken, note, ok
from simfle.doctor.gpu import examine_gpu

NEEDED = ("torchvision", "timm", "deepspeed", "accelerate", "omegaconf", "safetensors", "submitit", "webdataset")
MIN_PYTHON = (3, 10)
MIN_OPEN_FILES = 1024  # a process keeps up to 256 tars open, and libraries some hundred more files
MIN_SHARED_MEMORY = 1e9  # bytes of /dev/shm, used by NCCL and torch
MIN_FREE_DISK = 20e9  # bytes; two checkpoints of ViT-B FaceMAE with optimizer take 6
SLOW_DISK = 100e6  # bytes/s; 5,000 faces of 20 kB
TRIAL = 64 << 20  # bytes written and read to measure a disk
MAX_CLOCK_SKEW = 2.0  # seconds; checkpoint ages and heartbeats are compared with this machine's clock
SECONDS = 30


def run_checks(folder: Path) -> list[Finding]:
    """Run all checks of this machine; `folder` is where runs will be written.

    A check that raises an error becomes a finding, and the other checks still run.
    """
    checks: list[Callable[[], list[Finding]]] = [
        python, packages, torch_and_gpu, dali, jpeg, ffcv, shared_memory, open_files, lambda: disk(folder), slurm,
    ]  # fmt: skip
    found = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # noqa: BLE001 - a broken library raises anything, which is a finding
            name = getattr(check, "__name__", "disk").strip("<>")
            found.append(broken(name, f"{type(error).__name__}: {error}", "reinstall it in a new environment"))
    return found


def python() -> list[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.prefix}"
    if sys.version_info < MIN_PYTHON:
        return [broken("Python", text, "install Python 3.10 or newer")]
    if platform.system() != "Linux":
        return [note("Python", text, "only Linux is tested")]
    return [ok("Python", text)]


def packages() -> list[Finding]:
    """Check the required packages by their installation; importing them all would be slow."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return [broken("packages", f"{', '.join(missing)} missing", "pip install simfle, with its requirements")]
    return [ok("packages", ", ".join(f"{name} {_version(name)}" for name in ("simfle", "timm", "deepspeed")))]


def torch_and_gpu() -> list[Finding]:
    """Check PyTorch, CUDA, the driver, each GPU, NCCL."""
    import torch

    found = [ok("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        for number in range(count):
            found += _gpu(number)
        found.append(ok("CUDA", str(torch.version.cuda)))
        if not torch.distributed.is_nccl_available():
            found.append(broken("NCCL", "not in this build of torch", "install PyTorch's CUDA build for Linux"))
        else:
            found.append(ok("NCCL", ".".join(map(str, torch.cuda.nccl.version()))))
        return found
    if shutil.which("nvidia-smi"):
        words = _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
        if words:
            advice = (
                f"this torch is built for CUDA {torch.version.cuda}: update the driver, or install a torch for it"
                if torch.version.cuda
                else "this torch is built without CUDA: install PyTorch's CUDA build"
            )
            return [*found, broken("GPU", f"{words.splitlines()[0]}, but torch cannot use it", advice)]
    advice = "use the CPU for small runs only, such as configs/pretrain/faces_cpu.yaml"
    return [*found, note("GPU", "none", advice)]


def _gpu(number: int) -> list[Finding]:
    """Run `examine_gpu`; report a failed trial as a finding and continue with the other GPUs."""
    try:
        return examine_gpu(number)
    except Exception as error:  # noqa: BLE001 - CUDA, cuDNN and DALI raise any type
        words = (str(error).splitlines() or [""])[0]
        advice = "update the driver (nvidia-smi prints its CUDA), see nvidia-smi -q -d ECC, or use another GPU"
        return [broken(f"GPU {number}", f"{type(error).__name__}: {words}", advice)]


def dali() -> list[Finding]:
    """Check NVIDIA DALI, which decodes on the GPU; without a GPU OpenCV is faster."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        if shutil.which("nvidia-smi"):
            return [note("DALI", "not installed", "pip install 'simfle[dali]'; otherwise OpenCV decodes on the CPU")]
        return [ok("DALI", "not installed, and not needed without a GPU")]
    from nvidia import dali as library

    return [ok("DALI", str(library.__version__))]


def jpeg() -> list[Finding]:
    """Check libjpeg-turbo (through simplejpeg) and OpenCV: encode and decode an image."""
    import cv2
    import numpy as np
    import simplejpeg

    picture = np.full((32, 32, 3), 90, np.uint8)
    data = simplejpeg.encode_jpeg(picture, quality=95)
    by_simplejpeg = simplejpeg.decode_jpeg(data, strict=True)
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if by_opencv is None or max(abs(int(np.mean(other)) - 90) for other in (by_simplejpeg, by_opencv)) > 2:
        return [broken("JPEG", "a decoded image differs from the original", "reinstall simplejpeg and opencv")]
    return [ok("JPEG", f"simplejpeg {_version('simplejpeg')} (libjpeg-turbo), OpenCV {cv2.__version__}")]


def ffcv() -> list[Finding]:
    """Check FFCV, optional: only for reading external .beton files."""
    if importlib.util.find_spec("ffcv") is None:
        return [ok("ffcv", "not installed; optional, for external .beton files: pip install 'simfle[ffcv]'")]
    importlib.import_module("ffcv")
    return [ok("ffcv", _version("ffcv"))]


def shared_memory() -> list[Finding]:
    place = Path("/dev/shm")
    if not place.is_dir():
        return [note("shared memory", "no /dev/shm", "mount it: without it, the GPUs of a machine communicate slowly")]
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free in {place}"
    if free < MIN_SHARED_MEMORY:
        return [note("shared memory", text, "in a container: --shm-size=8g, or --ipc=host")]
    return [ok("shared memory", text)]


def open_files() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} open files (up to {hard})"
    if soft < MIN_OPEN_FILES:
        return [broken("open files", text, f"ulimit -n {max(4096, MIN_OPEN_FILES)} in the shell or the job's setup")]
    return [ok("open files", text)]


def disk(folder: Path) -> list[Finding]:
    """Check space, speed and clock of the file system where runs will be written."""
    place = folder
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".simfle-doctor-", dir=place) as made:
            write, read, skew = measure_disk(Path(made))
    except OSError as error:
        advice = "choose a writable folder: simfle doctor --folder FOLDER"
        return [broken("disk", f"{place}: {error.strerror}", advice)]
    free = shutil.disk_usage(place).free
    text = f"{place.resolve()}: {free / 1e9:.0f} GB free"
    found = [
        ok("disk", text)
        if free >= MIN_FREE_DISK
        else note("disk", text, "a run keeps several GB of checkpoints: free disk space")
    ]
    text = f"writes {write / 1e6:.0f} MB/s, reads {read / 1e6:.0f} MB/s, without the page cache where possible"
    slow = "slower than 5,000 faces/s: keep shards on a local disk (data.cache_dir), or on a faster file system"
    found.append(ok("disk speed", text) if read >= SLOW_DISK else note("disk speed", text, slow))
    text = f"the file system's clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
    late = "synchronize both clocks by NTP: ages of checkpoints and heartbeats use this machine's clock"
    found.append(ok("clocks", text) if abs(skew) < MAX_CLOCK_SKEW else note("clocks", text, late))
    return found


def measure_disk(folder: Path) -> tuple[float, float, float]:
    """Return bytes/s written and read, and seconds that the file system's clock is ahead. Raises OSError."""
    file = folder / f"trial-{os.getpid()}"
    block = os.urandom(1 << 20)
    began = time.perf_counter()
    with file.open("wb") as stream:
        for _ in range(TRIAL // len(block)):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    wrote = time.perf_counter() - began
    skew = file.stat().st_mtime - time.time()
    return TRIAL / wrote, read_rate(file), skew


def read_rate(file: Path) -> float:
    """Return read bytes/s, after dropping the file from the page cache. Raises OSError."""
    with open_regular(file, "rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        size = sum(iter(lambda: len(stream.read(1 << 20)), 0))
        return size / (time.perf_counter() - began)


def slurm() -> list[Finding]:
    """Check whether this machine can submit jobs, the controller answers, and finished jobs remain in accounting."""
    if not shutil.which("sbatch"):
        return [ok("Slurm", "not installed here; only `simfle slurm` needs it")]
    version = _said("sbatch", "--version")
    nodes = _said("sinfo", "--noheader", "--format=%P %D %t")
    if not nodes:
        advice = "run sinfo and ask the administrators; only `simfle slurm` needs it"
        return [note("Slurm", f"{version or 'sbatch is installed'}, but its controller does not answer", advice)]
    found = [ok("Slurm", f"{version}; partitions, nodes, state: {', '.join(nodes.splitlines()[:4])}")]
    if _said("sacct", "--noheader", "--starttime=now-1minutes", code=True) != "0":
        text = "no accounting (sacct fails)"
        advice = "no action is needed: ends of jobs are recorded beside each run; finished jobs of others are invisible"
        return [*found, note("accounting", text, advice)]
    return [*found, ok("accounting", "sacct answers")]


def _said(*words: str, code: bool = False) -> str:
    """Return a program's output, or "" if it fails. With `code`, return its exit code."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if code:
        return str(done.returncode)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?"
