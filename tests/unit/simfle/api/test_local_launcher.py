"""Environment variables of a launcher, or of a shell that kept another job's variables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.launch import ROOT, environment

from simfle.api.local_launcher import PROGRAM
from simfle.errors import UserError
from simfle.runtime.distributed import _launched, intra_op_threads

WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"RANK": "5"}, "RANK=5 WORLD_SIZE=2 .*: ranks range from 0 to WORLD_SIZE - 1"),
        ({"RANK": "-1"}, "RANK=-1 WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0"}, "RANK=0 WORLD_SIZE=0"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR= MASTER_PORT=29500: not an address and a port from 0 to 65535"),
        ({"MASTER_PORT": None}, "MASTER_ADDR=127.0.0.1 MASTER_PORT=: not an address"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: not an address"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: not an address"),
        ({"RANK": "one"}, "the launcher's environment is incomplete"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    changed: dict[str, str | None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch would wait for the others without end, or end with a traceback."""
    for name, value in (WHOLE | changed).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", changed.get("LOCAL_WORLD_SIZE") or "1")
    with pytest.raises(UserError, match=words):
        _launched()


def test_a_launcher_need_not_tell_how_many_processes_a_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (WHOLE | {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert _launched() == {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 1}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")


@pytest.mark.parametrize("text", ["0", "1" * 5000, "2,4", " ", "many"])
def test_any_number_of_threads_is_read(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert intra_op_threads(1) >= 1


def test_processes_of_our_own_launcher_find_no_modules_in_the_current_folder(tmp_path: Path) -> None:
    """Where a user has a random.py, or another checkout: the processes run the program that started them."""
    for name in ("queue.py", "random.py", "json.py", "simfle.py"):
        (tmp_path / name).write_text("raise SystemExit('a module of the user')")
    words = [sys.executable, "-c", PROGRAM, json.dumps([str(ROOT), *sys.path[1:]]), "--version"]
    own = environment()
    own.pop("PYTHONPATH")
    done = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.strip()
