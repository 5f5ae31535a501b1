"""Inject each fault of the table into real processes; then the run resumes and ends as an undisturbed one."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import runs
from faults import scenario as telling
from faults.fault_cases import FAULTS, lines
from faults.faults_covered_elsewhere import COVERED_ELSEWHERE
from faults.fork_server import At, ForkServer
from faults.kinds import Fault
from faults.scenario import Scenario

from simfle.runtime.ports import free_port
from simfle.train.checkpointing import checkpoint

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def base(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `faces`, `whole` (an undisturbed run in its own process) and `run`, at step 4."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "faces").symlink_to(faces)
    runs.finish(1, faces, folder / "whole", *telling.SMALL, *telling.LENGTH)
    return folder


@pytest.fixture(scope="module")
def nursery(base: Path) -> Iterator[ForkServer]:
    before = telling.shared_memory()
    temporary = base / "tmp"
    parent = ForkServer(temporary, *telling.MODULES)
    words = runs.command(1, base / "faces", base / "run", *telling.SMALL, *telling.LENGTH, "train.stop_after_step=4")
    first = parent.start(words[1:], base / "log")
    assert first.wait() == 0, first.output
    yield parent
    left = [pid for child in parent.children for pid in telling.session(child.pid)]
    parent.close()
    assert not left
    assert not list(temporary.iterdir())
    assert telling.gone(lambda: telling.shared_memory() - before)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_nothing_is_lost(fault: Fault, nursery: ForkServer, base: Path, tmp_path: Path) -> None:
    story = Scenario(nursery, tmp_path, base)
    fault.hurt(story)
    story.finish()
    telling.check_same(story.run, base / "whole")
    telling.check_tidy(story.run)
    assert story.checkpoints == [8, 10]


def test_killed_before_each_file_operation(nursery: ForkServer, tmp_path: Path) -> None:
    """At any moment the newest complete checkpoint is valid, and the next start writes the rest."""
    script = str(TESTS / "faults" / "write_checkpoints.py")
    newest = []
    for moment in range(1, 200):
        run = tmp_path / str(moment)
        child = nursery.start([script, str(run)], tmp_path / f"{moment}.log", at=At(str(run), nth=moment))
        if child.wait() == 0:
            break
        assert child.code == -signal.SIGKILL, child.output
        found = checkpoint.read_newest(run)
        newest.append(found.progress.step if found else 0)
        assert found is None or set(found.model["a"].tolist()) == {float(found.progress.step)}
        again = nursery.start([script, str(run)], tmp_path / f"{moment}.log")
        assert again.wait() == 0, again.output
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000008"]
    assert newest == sorted(newest)
    assert set(newest) == {0, 6, 8}
    assert len(newest) > 20


def ranks(process: "runs.subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the workers of a launcher by rank."""
    found = {}
    for each in psutil.Process(process.pid).children(recursive=True):
        rank = each.environ().get("RANK")
        if rank is not None and "launchers/pretrain.py" in each.cmdline():
            found[int(rank)] = each
    return [found[rank] for rank in sorted(found)]


def finish_both(nursery: ForkServer, faces: Path, run: Path, *settings: str) -> None:
    """Run two ranks to their end, as a launcher starts them."""
    words = runs.command(1, faces, run, *settings)[1:]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = []
    for rank in ("0", "1"):
        environment = {"RANK": rank, "LOCAL_RANK": rank, **world}
        both.append(nursery.start(words, run.with_name(f"{run.name}-{rank}.log"), environment=environment))
    for child in both:
        assert child.wait() == 0, child.output


def test_ranks(faces: Path, nursery: ForkServer, tmp_path: Path) -> None:
    """Two processes under a launcher: a rank is killed, then the launcher of the same run."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    settings = (*telling.SMALL, "train.steps=16", "train.checkpoint_every=4")
    finish_both(nursery, faces, whole, *settings)

    process = runs.start(2, faces, run, *settings)
    runs.wait_for_step(process, run, 5)
    workers = ranks(process)
    workers[1].kill()
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 1, output
    assert not psutil.wait_procs(workers, timeout=800)[1]

    process = runs.start(2, faces, run, *settings)
    runs.wait_for_step(process, run, 8)
    workers = ranks(process)
    process.kill()  # only the launcher
    output, _ = process.communicate(timeout=800)  # the workers share its pipe: wait until they have ended
    assert not psutil.wait_procs(workers, timeout=800)[1]
    done = len(runs.metrics(run))
    assert f"stopped on SIGTERM after step {done} of 16; saved" in output
    assert (run / "checkpoints" / f"step-{done:08d}" / "COMPLETE").exists()

    finish_both(nursery, faces, run, *settings)
    telling.check_same(run, whole)
    telling.check_tidy(run)


def test_nobody_reads_any_more(faces: Path, tmp_path: Path) -> None:
    """`| head`, or a closed terminal: the run continues silently to its end."""
    process = runs.start(1, faces, tmp_path, *telling.SMALL, "train.steps=8")
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert len(runs.metrics(tmp_path)) == 8


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=lambda number: number.name)
def test_our_own_launcher(number: signal.Signals, faces: Path, tmp_path: Path) -> None:
    """If killed, it leaves no training process behind; it forwards a closed terminal's signal."""
    log = tmp_path / "log"
    settings = (*telling.SMALL, "train.steps=4000", "train.checkpoint_every=4000")
    words = runs.command(1, faces, tmp_path / "run", *settings)
    with log.open("w") as file:
        process = subprocess.Popen([*words, "--processes", "2"], cwd=TESTS.parent, stderr=file, start_new_session=True)
    runs.wait_for_step(process, tmp_path / "run", 2)  # type: ignore[arg-type]
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.send_signal(number)
    assert process.wait(120) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert not psutil.wait_procs(workers, timeout=800)[1]
    done = len(runs.metrics(tmp_path / "run"))
    assert f"after step {done} of 4000; saved" in log.read_text()
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:08d}" / "COMPLETE").exists()


def test_the_table_is_that_of_the_docs_and_its_tests_exist() -> None:
    docs = (TESTS.parent / "docs" / "reliability.md").read_text()
    assert "\n".join(lines()) in docs, "docs/reliability.md: put in what `python tests/faults/fault_cases.py` prints"
    for _, _, file, name in COVERED_ELSEWHERE:
        assert f"def {name}" in (TESTS / file).read_text(), f"{file} has no {name}"
