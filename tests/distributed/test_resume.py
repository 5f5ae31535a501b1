"""Exact resume: killed anywhere, on the same or another number of processes, a run resumes at the next sample."""

import gzip
import json
import signal
from pathlib import Path

import psutil
import pytest
from distributed import runs

SETTINGS = ("train.steps=12", "train.checkpoint_every=4", "train.log_sample_ids=true", "train.log_images_every=5")
# Changes that must have no effect.
BESIDE = (
    "train.profile=true",
    "train.profile_steps=[2,3]",
    "train.profile_ranks=[0,1]",
    "train.checkpoint_write_mbps=2",
    "train.deterministic=true",
)
PHASES = ("data", "forward", "backward", "reduce", "optimizer", "ema", "report")


@pytest.fixture(scope="module")
def undisturbed(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    runs.finish(2, faces, run, *SETTINGS)
    assert [line["step"] for line in runs.metrics(run)] == list(range(1, 13))
    return run


def kill(process: "runs.subprocess.Popen[str]") -> None:
    """Return the launcher and its workers, which run in separate sessions."""
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        each.kill()
    process.wait()


def test_killed_and_resumed_run_has_the_same_losses_bit_for_bit(undisturbed: Path, faces: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = runs.start(2, faces, run, *SETTINGS)
    runs.wait_for_step(process, run, 6)
    kill(process)
    assert 6 <= len(runs.metrics(run)) < 12
    output = runs.finish(2, faces, run, *SETTINGS, *BESIDE)
    assert "resuming after step" in output
    assert runs.losses(run) == runs.losses(undisturbed)
    assert runs.samples(run) == runs.samples(undisturbed)
    assert output.count("open it at https://ui.perfetto.dev") == 2
    for rank in (0, 1):
        trace = json.loads(gzip.decompress((run / "profile" / f"rank-{rank:05d}.json.gz").read_bytes()))
        names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
        assert [names.count(f"simfle.{phase}") for phase in PHASES] == [2] * len(PHASES)
        operators = (run / "profile" / f"rank-{rank:05d}.txt").read_text()
        assert operators.startswith(f"steps 2 to 3 of this start, rank {rank}\n")
        assert "aten::convolution_backward" in operators


def test_resumed_on_other_numbers_of_processes_it_sees_the_same_samples_and_pixels(
    undisturbed: Path, faces: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    runs.finish(1, faces, run, *SETTINGS, "train.stop_after_step=4", "train.micro_batch=8")
    runs.finish(4, faces, run, *SETTINGS, "train.stop_after_step=8", "train.zero_stage=3")
    runs.finish(1, faces, run, *SETTINGS, "train.zero_stage=0")
    assert runs.samples(run) == runs.samples(undisturbed)
    assert [line["processes"] for line in runs.metrics(run)] == [1] * 4 + [4] * 4 + [1] * 4


def test_signal_saves_and_leaves_cleanly(undisturbed: Path, faces: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = runs.start(1, faces, run, *SETTINGS, "train.checkpoint_every=1000")
    runs.wait_for_step(process, run, 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output
    assert "stopped on SIGTERM after step" in output
    done = len(runs.metrics(run))
    assert (run / "checkpoints" / f"step-{done:08d}" / "COMPLETE").exists()
    runs.finish(1, faces, run, *SETTINGS)
    assert runs.samples(run) == runs.samples(undisturbed)
