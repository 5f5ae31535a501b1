"""Complete runs on GPUs, as a user starts them: a killed run resumes with the same samples and losses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed import runs
from distributed.launch import ROOT, environment

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

DEVICE = "cuda"
SETTINGS = [
    *(word for word in runs.SETTINGS if not word.startswith(("train.device", "train.precision", "data.backend"))),
    *(f"train.device={DEVICE}", "train.precision=bf16", "data.backend=auto"),
    *("train.steps=8", "train.checkpoint_every=3", "train.log_sample_ids=true"),
    "train.deterministic=true",
]


def start(processes: int, faces: Path, run: Path, *settings: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "simfle", "pretrain", *SETTINGS, f"data.shards=[{faces}]", f"train.run_dir={run}"]
    words += [*settings, *(["--processes", str(processes)] if processes > 1 else [])]
    seen = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    own = {name: value for name, value in environment().items() if name != "CUDA_VISIBLE_DEVICES"} | seen
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, env=own, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(processes: int, faces: Path, run: Path, *settings: str) -> str:
    process = start(processes, faces, run, *settings)
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def undisturbed(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(1, faces, run)
    return run


def test_a_killed_run_goes_on_with_the_same_samples_and_pixels(undisturbed: Path, faces: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(1, faces, run)
    runs.wait_for_step(process, run, 5)
    process.kill()
    process.wait()
    assert "resuming after step" in finish(1, faces, run)
    assert runs.samples(run) == runs.samples(undisturbed)
    assert runs.losses(run) == runs.losses(undisturbed)


@pytest.mark.parametrize(
    "settings", [["train.micro_batch=4"], ["train.micro_batch=auto"], ["model.activation_checkpointing=true"]]
)
def test_settings_change_no_sample_and_no_pixel(
    settings: list[str], undisturbed: Path, faces: Path, tmp_path: Path
) -> None:
    finish(1, faces, tmp_path, *settings)
    assert runs.samples(tmp_path) == runs.samples(undisturbed)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two GPUs")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_gpus_see_what_one_sees(stage: int, undisturbed: Path, faces: Path, tmp_path: Path) -> None:
    finish(2, faces, tmp_path, f"train.zero_stage={stage}")
    assert runs.samples(tmp_path) == runs.samples(undisturbed)
