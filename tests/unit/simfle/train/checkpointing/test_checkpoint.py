"""Checkpoints on disk: complete or not there, verified when read, old ones gone only after new ones stand."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shards.errors import UserError
from shards.io.hashing import hash_file
from simfle.runtime import run_files
from simfle.train.checkpointing import checkpoint
from simfle.train.checkpointing.checkpoint import TrainState

pytestmark = pytest.mark.slow

MODEL = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}
OPTIM = {"a.weight.momentum_buffer": torch.ones(2, 3)}


def save(run: Path, step: int) -> Path:
    return checkpoint.write(run, TrainState(step, step * 8, "config", "corpus", "sgd"), MODEL, OPTIM)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save(tmp_path, 4)
    found = checkpoint.read_newest(tmp_path)
    assert found is not None
    assert found.progress == TrainState(4, 32, "config", "corpus", "sgd")
    assert torch.equal(found.model["a.weight"], MODEL["a.weight"])
    assert found.model["a.count"].dtype == torch.int64
    assert torch.equal(found.optim["a.weight.momentum_buffer"], OPTIM["a.weight.momentum_buffer"])


def test_a_new_run_has_none(tmp_path: Path) -> None:
    assert checkpoint.read_newest(tmp_path) is None


def test_incomplete_folders_do_not_count_and_are_cleaned_up(tmp_path: Path) -> None:
    save(tmp_path, 4)
    (save(tmp_path, 8) / "COMPLETE").unlink()
    partial = tmp_path / "checkpoints" / ".step-00000012.partial"
    partial.mkdir()
    assert [folder.name for folder in checkpoint.complete_checkpoints(tmp_path)] == ["step-00000004"]
    checkpoint.prune(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("name", ["step-00000002-backup", "step-00000004.old", "step-best"])
def test_a_copy_of_the_users_own_is_no_checkpoint_and_stays(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoints" / name
    shutil.copytree(save(tmp_path, 2), copy)
    (copy / "COMPLETE").unlink()
    shutil.copytree(save(tmp_path, 2), whole := copy.with_name(f"{name}-whole"))
    save(tmp_path, 4)
    assert [folder.name for folder in checkpoint.complete_checkpoints(tmp_path)] == ["step-00000004", "step-00000002"]
    found = checkpoint.read_newest(tmp_path)
    assert found is not None
    assert found.progress.step == 4
    checkpoint.quarantine_after(tmp_path, 2)
    checkpoint.prune(tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(
        ["step-00000002", copy.name, whole.name]
    )
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    assert checkpoint.read_newest(tmp_path) is None  # nothing of the run's own is there


def test_a_copy_under_the_name_of_another_step_is_never_read_or_touched(tmp_path: Path) -> None:
    copy = shutil.copytree(save(tmp_path, 4), tmp_path / "checkpoints" / "step-00000008")
    link = tmp_path / "checkpoints" / "step-00000002"
    link.symlink_to(save(tmp_path / "elsewhere", 2))
    hidden = tmp_path / "checkpoints" / ".step-mine.partial"
    hidden.mkdir()
    assert run_files.copied_checkpoints(tmp_path) == [copy]
    found = checkpoint.read_newest(tmp_path)
    assert found is not None
    assert found.folder.name == "step-00000004"
    checkpoint.quarantine_after(tmp_path, 4)
    with pytest.raises(FileExistsError, match="has the state of another step"):
        save(tmp_path, 8)  # the run arrives there
    save(tmp_path, 12)
    checkpoint.prune(tmp_path, 1)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [hidden.name, link.name, copy.name, "step-00000012"]
    assert (link / "COMPLETE").exists()
    (copy / "state.json").write_text((copy / "state.json").read_text().replace("4", "6"))
    assert not run_files.copied_checkpoints(tmp_path)  # a corrupt checkpoint is the run's own


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 6):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2)
    assert [folder.name for folder in checkpoint.complete_checkpoints(tmp_path)] == ["step-00000010", "step-00000006"]


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "state.json", "COMPLETE"])
@pytest.mark.parametrize("damage", ["bit", "empty", "missing"])
def test_damage_is_noticed_and_the_one_before_is_taken(file: str, damage: str, tmp_path: Path) -> None:
    save(tmp_path, 4)
    path = save(tmp_path, 8) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "bit" else b"")
    found = checkpoint.read_newest(tmp_path)
    assert found is not None
    assert found.progress.step == 4


def test_only_damaged_ones_never_mean_a_fresh_start(tmp_path: Path) -> None:
    (save(tmp_path, 4) / "optim.safetensors").unlink()
    with pytest.raises(UserError, match=r"no valid checkpoint .*optim.safetensors"):
        checkpoint.read_newest(tmp_path)


def test_another_format_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    state = json.loads((folder / "state.json").read_text()) | {"format": 99}
    (folder / "state.json").write_text(json.dumps(state))
    marker = json.loads((folder / "COMPLETE").read_text())
    marker["state.json"] = {
        "bytes": (folder / "state.json").stat().st_size,
        "sha256": hash_file(folder / "state.json"),
    }
    (folder / "COMPLETE").write_text(json.dumps(marker))
    with pytest.raises(UserError, match="format 99"):
        checkpoint.read(folder)


def test_a_disk_without_room_is_said_and_older_checkpoints_stand(tmp_path: Path) -> None:
    """A real process that may write files of at most 2,000 bytes."""
    save(tmp_path, 4)
    program = (
        "import sys, pathlib, torch\n"
        "from simfle.train.checkpointing.checkpoint import TrainState, AsyncCheckpointWriter\n"
        "from shards.errors import UserError\n"
        f"writer = AsyncCheckpointWriter(pathlib.Path({str(tmp_path)!r}), 1)\n"
        "writer.submit(TrainState(8, 64, 'config', 'corpus', 'sgd'), {'a': torch.ones(10_000)}, {})\n"
        "try:\n    writer.wait()\n"
        "except UserError as error:\n    sys.exit(str(error))\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "checkpoint could not be written" in done.stderr
    assert [folder.name for folder in checkpoint.complete_checkpoints(tmp_path)] == ["step-00000004"]
