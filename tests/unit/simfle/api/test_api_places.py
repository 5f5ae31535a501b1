"""`simfle.pretrain` and `simfle.evaluate` as notebooks and scripts call them: threads, odd names, again and again."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from distributed.runs import SETTINGS
from hypothesis import given
from hypothesis import strategies as st

import shards
import simfle
from simfle.api.functions import _written
from simfle.runtime.distributed import FOR_LIBRARIES, LAUNCHED

pytestmark = pytest.mark.slow

TINY: dict[str, object] = dict(word.split("=", 1) for word in SETTINGS) | {
    "train.steps": 1,
    "train.log_images_every": 0,
}


def state() -> dict[str, object]:
    """Return the state of the process that a run could change."""
    found = {name: os.environ.get(name) for name in (*LAUNCHED, *FOR_LIBRARIES)}
    return found | {"random": torch.get_rng_state().tolist(), "hook": sys.excepthook}


def test_in_a_thread_and_again_and_again(faces: Path, tmp_path: Path) -> None:
    """No signal can be caught there, and nothing else is missing; files and sockets do not pile up."""
    opened, found, files = shards.open(faces), [], []
    before = state()

    def work() -> None:
        for number in range(3):
            out = tmp_path / f"run {number} \U0001f642"
            found.append(simfle.pretrain(opened, out, settings=TINY | {"train.seed": np.int64(number)}))
            settings = {"protocols": ["knn"], "bootstrap_samples": 20, "seeds": range(1)}
            simfle.evaluate(found[-1], shards=opened, out=out / "eval", settings=settings)
            files.append(len(list(Path("/proc/self/fd").iterdir())))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len({path.read_bytes() for path in found}) == 3
    assert files[1:] == [files[1]] * 2
    assert state() == before


def test_what_another_argument_says_is_refused(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(simfle.UserError, match=r"settings: train\.run_dir is set by out="):
        simfle.pretrain(faces, tmp_path / "a", settings={"train.run_dir": "b"})
    with pytest.raises(simfle.UserError, match="settings: out is set by out="):
        simfle.evaluate("x", settings={"out": "b"})
    with pytest.raises(simfle.UserError, match="backbones: a Module has no name"):
        simfle.evaluate(torch.nn.Module())
    with pytest.raises(simfle.UserError, match="not UTF-8"):
        simfle.pretrain(faces, os.fsdecode(b"\xff"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(simfle.UserError, match="start it once with processes=N"):
        simfle.pretrain(faces, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_backbone_older_than_its_run_is_told(faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    simfle.pretrain(faces, tmp_path, settings=TINY)
    simfle.load_backbone(tmp_path)
    assert "since its backbone was exported" not in caplog.text
    card = tmp_path / "export" / "online" / "backbone.json"
    card.write_text(card.read_text().replace("step-00000001", "step-00000000"))
    simfle.load_backbone(tmp_path)
    assert "has reached step-00000001 since its backbone was exported" in caplog.text


def test_home_is_known(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "faces").symlink_to(faces)
    assert simfle.pretrain("~/faces", "~/run", settings=TINY) == tmp_path / "run/export/online/backbone.safetensors"


def test_a_notebooks_colors_are_not_relayed(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With them the progress is a bar that is drawn over itself, and comes as one block at the end."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    simfle.pretrain(faces, tmp_path, processes=2, settings=TINY)
    said = capsys.readouterr().err
    assert "step 1/1" in said
    assert "\x1b" not in said


def test_ctrl_c_before_the_first_step_is_an_interrupt(faces: Path, tmp_path: Path) -> None:
    """The same with several processes."""
    program = f"import simfle\nsimfle.pretrain({str(faces)!r}, {str(tmp_path / 'run')!r}, processes=2)"
    script = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    mine = Path(f"/proc/{script.pid}/task/{script.pid}/children")
    end = time.monotonic() + 120
    while len(mine.read_text().split()) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    script.send_signal(signal.SIGINT)
    _, said = script.communicate(timeout=800)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert not list(tmp_path.glob("run/checkpoints/step-*"))


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_names_arrive_as_they_are(name: str) -> None:
    assert yaml.safe_load(_written({name: [name]})) == {name: [name]}
