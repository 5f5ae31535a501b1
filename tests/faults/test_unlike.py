"""Refuse a run whose processes were started with different seeds or programs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import runs
from distributed.launch import ROOT
from faults import scenario as telling
from faults.fork_server import Child, ForkServer

from shards.edit.remove import remove_samples
from simfle.runtime.ports import free_port
from simfle.train.rank_consistency import differences, source_digest


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    parent = ForkServer(tmp_path_factory.mktemp("nursery") / "tmp", *telling.MODULES)
    yield parent
    parent.close()


def start(nursery: ForkServer, faces: Path, run: Path, *second: str) -> list[Child]:
    """Run two ranks, the second with its own settings."""
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank, own in (("0", ()), ("1", second)):
        words = runs.command(1, faces, run, *telling.SMALL, "train.steps=2", *own)[1:]
        environment = {"RANK": rank, "LOCAL_RANK": rank, **world}
        started.append(nursery.start(words, run.with_name(f"{run.name}-{rank}"), environment=environment))
    return started


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.seed=9"], "train.seed 9 instead of 0"),
        (["optim.lr=0.9", "train.zero_stage=1"], "optim.lr 0.9 instead of 0.05; train.zero_stage 1 instead of -1"),
        (["data.shards=[{other}]"], "data "),
    ],
)
def test_a_process_with_other_settings_or_data_ends_the_run_before_it_begins(
    settings: list[str], words: str, nursery: ForkServer, faces: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(faces, other)
    remove_samples(other, person="p00000", reason="test")
    main, second = start(nursery, faces, tmp_path / "run", *(word.format(other=other) for word in settings))
    assert (main.wait(), second.wait()) == (1, 1), main.output + second.output
    assert main.last_line.startswith("error: process 1 on "), main.output
    assert words in main.last_line
    assert "Fix: start all processes of a run with the same program" in main.last_line
    assert "Traceback" not in main.output + second.output
    assert not (tmp_path / "run").exists()


def test_another_program_is_told_wherever_the_same_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import simfle

    here = source_digest()
    copied = shutil.copytree(ROOT / "simfle", tmp_path / "simfle", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(simfle, "__path__", [str(copied)])
    assert source_digest() == here
    (copied / "optim.py").write_text((copied / "optim.py").read_text().replace("0", "1", 1))
    assert source_digest() != here
    assert "program b instead of a" in differences({"program": "a"}, {"program": "b"})
    assert differences({"program": "a"}, {"program": "a"}) == ""
