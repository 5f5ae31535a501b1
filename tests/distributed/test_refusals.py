"""Refusals of a run: one clear line, a non-zero exit code, and no partial files."""

from pathlib import Path

import pytest
import torch
from distributed import runs
from helpers.http_server import served
from helpers.synthetic_shards import make_faces
from safetensors.torch import load_file

from simfle.runtime.ports import free_port
from simfle.train.checkpointing.checkpoint import complete_checkpoints
from simfle.train.watchdog import HUNG


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.global_batch=17", "train.global_batch=17: not divisible by 2 processes"),
        ("model.mask_groups=5", "model.mask_groups=5: does not divide the backbone's 512 channels"),
        ("optim.nmae=sgd", "config: unknown key 'optim.nmae' in command line; did you mean optim.name?"),
    ],
)
def test_bad_settings_end_with_one_line_and_leave_no_folder(
    setting: str, message: str, faces: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = 2 if "batch" in setting else 1
    output = runs.finish(processes, faces, run, setting, code=1)
    assert f"error: {message}" in output
    assert "simfle" not in "".join(line for line in output.splitlines() if line.startswith("  File"))
    assert not run.exists()


def test_accelerate_starting_fewer_processes_than_asked_is_noticed(faces: Path, tmp_path: Path) -> None:
    words = runs.command(2, faces, tmp_path / "run")
    words.remove("--use_deepspeed")
    own = runs.environment(DS_ACCELERATOR="cpu")
    done = runs.subprocess.run(words, cwd=runs.ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "accelerate was configured for several processes but started only this one" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_others_do_not_come_says_so_in_one_line(rank: int, faces: Path, tmp_path: Path) -> None:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"}
    words = [*runs.command(1, faces, tmp_path / "run"), "train.hang_timeout=1"]
    done = runs.subprocess.run(
        words, cwd=runs.ROOT, env=runs.environment(**own), capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: the processes of this run did not connect within 0:00:02" in last_line(done.stderr)
    assert not (tmp_path / "run").exists()


def test_a_run_is_only_ever_one_run(faces: Path, tmp_path: Path) -> None:
    """In use by another process; another configuration; a checkpoint of another model; a corrupt checkpoint."""
    run = tmp_path / "run"
    settings = ("train.steps=400", "train.checkpoint_every=2", "train.keep_checkpoints=2")
    first = runs.start(1, faces, run, *settings)
    runs.wait_for_step(first, run, 5)
    assert f"{run}: in use by process {first.pid}" in last_line(runs.finish(1, faces, run, *settings, code=1))
    first.terminate()
    first.wait(timeout=800)
    done = len(runs.metrics(run))

    output = last_line(runs.finish(1, faces, run, *settings, "optim.lr=0.1", "train.seed=3", code=1))
    assert "a run with another configuration" in output
    assert "optim.lr: 0.05 -> 0.1" in output
    assert "train.seed: 0 -> 3" in output

    shorter = tmp_path / "other" / "faces"
    shorter.parent.mkdir()
    make_faces(shorter, "--people", "8", "--shard-samples", "32")
    output = last_line(runs.finish(1, shorter, run, *settings, code=1))
    assert "do not contain the data that" in output
    moved = tmp_path / "moved"
    moved.symlink_to(faces)  # the same data under another path is not a reason to refuse

    newest, older = sorted(run.glob("checkpoints/step-*"), reverse=True)
    assert newest.name == f"step-{done:08d}"
    damaged = bytearray((newest / "model.safetensors").read_bytes())
    damaged[-1] ^= 1  # one bit
    (newest / "model.safetensors").write_bytes(damaged)
    output = runs.finish(1, moved, run, *settings, f"train.stop_after_step={done + 1}")
    assert "model.safetensors is corrupt" in output
    assert f"resuming after step {int(older.name[5:])}" in output


def test_a_loss_that_is_not_finite_stops_the_run_after_saving(faces: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("train.steps=20", "optim.lr=1e30")
    message = last_line(runs.finish(1, faces, run, *settings, code=1))
    done = len(runs.metrics(run))
    assert f"error: step {done + 1}: a loss is not finite" in message
    facts = runs.json.loads((run / "nonfinite.json").read_text())
    assert facts["step"] == done + 1
    assert len(facts["ids"]) == len(facts["keys"]) == 16
    saved = load_file(run / "checkpoints" / f"step-{done:08d}" / "model.safetensors")
    statistics = [value for name, value in saved.items() if "running" in name]
    assert statistics
    assert all(torch.isfinite(value).all() for value in statistics)  # not those of the non-finite forward pass


# The training script with a non-finite gradient in step 5 and a finite loss: the derivative of the square root at 0.
POISONED = """
from simfle.models.methods.simfle import SimFLE

forward, calls = SimFLE.forward, []

def poisoned(self, batch):
    losses = forward(self, batch)
    calls.append(None)
    if len(calls) == 5:
        losses["total"] = losses["total"] + (0 * losses["total"]).sqrt()
    return losses

SimFLE.forward = poisoned

from simfle.commands.pretrain import main

main()
"""


def poisoned(processes: int, faces: Path, folder: Path, *settings: str) -> str:
    """Run it in `folder` and return the last line of its output."""
    script = folder / "poisoned.py"
    script.write_text(POISONED)
    words = runs.command(processes, faces, folder / "run", "train.steps=20", *settings)
    words[words.index("launchers/pretrain.py")] = str(script)
    own = runs.environment(DS_ACCELERATOR="cpu")
    done = runs.subprocess.run(words, cwd=runs.ROOT, env=own, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("processes", "every", "wanted"),
    [
        (1, 3, "step 6: a loss is not finite"),
        (2, 3, "step 6: a loss is not finite"),
        (1, 5, "after step 5 a parameter is not finite"),
    ],
)
def test_a_state_that_is_not_finite_is_never_saved(
    processes: int, every: int, wanted: str, faces: Path, tmp_path: Path
) -> None:
    line = poisoned(processes, faces, tmp_path, f"train.checkpoint_every={every}", "train.zero_stage=2")
    assert wanted in line
    saved = complete_checkpoints(tmp_path / "run")
    newest = "the newest checkpoint is step-00000003" if saved else "there is no checkpoint"
    assert newest in line
    assert [folder.name for folder in saved] == (["step-00000003"] if every == 3 else [])
    for folder in saved:
        assert all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())


def test_a_step_that_deepspeed_passes_over_ends_the_run(faces: Path, tmp_path: Path) -> None:
    """With gradient clipping, DeepSpeed skips such steps silently and their samples would be lost."""
    line = poisoned(2, faces, tmp_path, "optim.max_grad_norm=1", "train.zero_stage=2")
    assert "step 5: a gradient is not finite" in line
    assert "the state after step 4 is saved" in line
    assert [folder.name for folder in complete_checkpoints(tmp_path / "run")] == ["step-00000004"]


def test_a_server_that_stalls_while_training_is_named(faces: Path, tmp_path: Path) -> None:
    """All processes live and one waits for a tar: the last line names the tar, without its URL signature."""
    cached = f"data.cache_dir={tmp_path / 'cache'}"
    with served(faces) as server:
        server.stalled = {file.name for file in faces.glob("train-*.tar")}
        settings = (f"data.shards=[{server.url}?sig=deadbeef]", cached, "train.steps=4", "train.hang_timeout=4")
        output = runs.finish(1, faces, tmp_path / "run", *settings, code=HUNG)
        (line,) = (each for each in output.splitlines() if each.startswith("error: "))
        assert line.startswith("error: no progress for ")
        assert f" waits for data: {server.url}/train-" in line
        assert "Fix: check its server" in line
        assert "all processes are alive" not in line
        assert "deadbeef" not in output
        server.stalled.clear()
        server.over.set()
        runs.finish(1, faces, tmp_path / "run", *settings)
    assert len(runs.metrics(tmp_path / "run")) == 4
