"""Faults that need two processes, one after the other on the same run: a rank is killed, then the launcher."""

from pathlib import Path

import psutil
from distributed import runs
from faults import story as telling

SETTINGS = (*telling.SMALL, "train.steps=16", "train.checkpoint_every=4")


def ranks(process: "runs.subprocess.Popen[str]") -> list[psutil.Process]:
    """The workers of a launcher, by rank: those that have been told one."""
    found = {}
    for each in psutil.Process(process.pid).children(recursive=True):
        rank = each.environ().get("RANK")
        if rank is not None and "launchers/pretrain.py" in each.cmdline():
            found[int(rank)] = each
    return [found[rank] for rank in sorted(found)]


def test_ranks(faces: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    runs.finish(2, faces, whole, *SETTINGS)

    process = runs.start(2, faces, run, *SETTINGS)
    runs.wait_for_step(process, run, 5)
    workers = ranks(process)
    workers[1].kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert not psutil.wait_procs(workers, timeout=10)[1]

    process = runs.start(2, faces, run, *SETTINGS)
    runs.wait_for_step(process, run, 8)
    workers = ranks(process)
    process.kill()  # the launcher alone
    output, _ = process.communicate(timeout=120)  # its pipe is the workers' too: until they have ended
    assert not psutil.wait_procs(workers, timeout=10)[1]
    done = len(runs.metrics(run))
    assert f"stopped on SIGTERM after step {done} of 16; saved" in output
    assert (run / "checkpoints" / f"step-{done:08d}" / "COMPLETE").exists()

    runs.finish(2, faces, run, *SETTINGS)
    telling.check_same(run, whole)
    telling.check_tidy(run)
