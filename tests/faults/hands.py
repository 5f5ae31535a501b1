"""Changes that users make to the files of a run, intended or not. Rows of the table like those of `fault_cases.py`."""

import re
import shutil
import signal
import time

from distributed import runs
from faults.faults_covered_elsewhere import RESUMES, SAYS
from faults.kinds import fault
from faults.scenario import Scenario

from shards.edit.remove import remove_samples


@fault(
    "config.yaml edited manually, and the same values passed",
    f"{SAYS}the keys are named; {RESUMES} with its own values",
)
def edited(story: Scenario) -> None:
    file = story.run / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("lr: 0.05", "lr: 0.07").replace("seed: 0", "seed: 5"))
    assert file.read_text() != text
    before = {path: path.read_bytes() for path in story.run.rglob("*") if path.is_file() and path.name != ".lock"}
    story.stopped(story.start("optim.lr=0.07", "train.seed=5"), "optim.lr: 0.05 -> 0.07; train.seed: 0 -> 5")
    assert before == {path: path.read_bytes() for path in before}  # and nothing was written


@fault("a checkpoint of another seed copied in", f"{SAYS}the key is named; {RESUMES} without it")
def another_seed(story: Scenario) -> None:
    other = story.folder / "other"
    child = story.start(f"train.run_dir={other}", "train.seed=3", "train.stop_after_step=6")
    assert child.wait() == 0, child.output
    copied = shutil.copytree(other / "checkpoints/step-00000006", story.run / "checkpoints/step-00000006")
    story.stopped(story.start(), "step-00000006 is of a run with another configuration (train.seed: 3 -> 0)")
    assert (copied / "COMPLETE").exists()
    shutil.rmtree(copied)


@fault(
    "copies of a checkpoint: `step-10`, and under another step's name",
    "the first copy is ignored; the second causes a one-line error",
)
def copied(story: Scenario) -> None:
    mine = shutil.copytree(story.newest, story.run / "checkpoints/step-10")
    child = story.start("train.stop_after_step=8")
    assert child.wait() == 0, child.output
    assert "resuming after step 4" in child.output
    assert {path.name for path in mine.parent.iterdir()} == {"step-10", "step-00000006", "step-00000008"}
    wrong = mine.rename(mine.with_name("step-00000099"))
    story.stopped(story.start(), "checkpoints/step-00000099 has the state of a step other than its name says")
    assert len(list(wrong.iterdir())) == 4
    shutil.rmtree(wrong)


@fault(
    "a person is removed from the shards while training",
    f"{SAYS}the state is saved; refused with the changed shards; {RESUMES} with the same",
)
def withdrawn(story: Scenario) -> None:
    aside = shutil.copytree(story.faces, story.folder / "aside")
    child = story.start("train.steps=4000", f"train.run_dir={story.folder / 'long'}")
    end = time.monotonic() + 120
    while not runs.metrics(story.folder / "long"):
        assert child.poll() is None, child.output
        assert time.monotonic() < end, child.output
        time.sleep(0.01)
    remove_samples(story.faces, person="p00000", reason="test")
    story.stopped(child, f"data.shards={story.faces}: its manifest.json no longer lists the shards of this run's start")
    saved = int(re.search(r"stopped after step (\d+), which is saved", child.last_line)[1])
    assert (story.folder / "long" / "checkpoints" / f"step-{saved:08d}" / "COMPLETE").exists()
    story.stopped(story.start(), "do not contain the data that")
    shutil.rmtree(story.faces)
    aside.rename(story.faces)
    child = story.start(
        "train.steps=4000", f"train.run_dir={story.folder / 'long'}", f"train.stop_after_step={saved + 1}"
    )
    assert child.wait() == 0, child.output


@fault(
    "the run's folder is deleted while training",
    f"{SAYS}no further writes; {RESUMES} after it is restored",
)
def deleted(story: Scenario) -> None:
    aside = shutil.copytree(story.run, story.folder / "aside")
    child = story.start("train.checkpoint_every=1")
    story.reach(child, 5)
    child.send(signal.SIGSTOP)
    shutil.rmtree(story.run)
    child.send(signal.SIGCONT)
    story.stopped(child, f"train.run_dir={story.run}: the folder was deleted or moved while the run was training")
    assert not story.run.exists()
    aside.rename(story.run)


@fault(
    "the checkpoints of a run are missing: a broken link, an empty folder (a disk that is not mounted)",
    f"{SAYS}the run does not start from scratch; {RESUMES} after they are restored",
)
def unmounted(story: Scenario) -> None:
    child = story.start("train.stop_after_step=6")
    assert child.wait() == 0, child.output
    before = (story.run / "metrics.jsonl").read_bytes()
    disk, folder = story.folder / "disk", story.run / "checkpoints"
    folder.rename(disk)
    folder.symlink_to(story.folder / "elsewhere")
    story.stopped(story.start(), "checkpoints is a link to")
    folder.unlink()
    for _ in range(2):  # no folder, an empty one
        story.stopped(story.start(), "metrics.jsonl reaches step 6, but there is no checkpoint")
        folder.mkdir(exist_ok=True)
    folder.rmdir()
    assert (story.run / "metrics.jsonl").read_bytes() == before
    folder.symlink_to(disk)
    child = story.start("train.stop_after_step=8")
    assert child.wait() == 0, child.output
    assert "resuming after step 6" in child.output
    folder.unlink()
    disk.rename(folder)
