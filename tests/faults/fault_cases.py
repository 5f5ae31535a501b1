"""Faults of a run on one process and their promises. `test_faults.py` checks the promises.

Each function gets a run at step 4 (checkpoints of steps 2 and 4, the next one at 6), injects a fault, and asserts how
the run ends. Afterwards the run is started once more, and must end as if there had been no fault.
`python tests/faults/fault_cases.py` prints the table of docs/reliability.md.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distributed import runs
from faults import hands  # noqa: F401 - rows of users' changes
from faults.faults_covered_elsewhere import COVERED_ELSEWHERE, RESUMES, SAYS
from faults.fork_server import At
from faults.kinds import FAULTS, fault
from faults.scenario import Scenario, exchange_images, kill, mounted, read_only


@fault("SIGKILL in a step", RESUMES)
def killed(story: Scenario) -> None:
    child = story.start()
    story.reach(child, 5)
    kill(child)


def signaled(number: signal.Signals) -> Callable[[Scenario], None]:
    def hurt(story: Scenario) -> None:
        child = story.start("train.checkpoint_every=1000")
        story.reach(child, 6)
        child.send(number)
        assert child.wait() == 0, child.output
        done = len(runs.metrics(story.run))
        assert f"stopped on {number.name} after step {done} of 10; saved" in child.last_line
        assert story.checkpoints[-1] == done

    return hurt


for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
    fault(each.name, f"the step is finished and saved, exit code 0; {RESUMES}")(signaled(each))


@fault("SIGSTOP, a second later SIGCONT", "continues")
def suspended(story: Scenario) -> None:
    child = story.start()
    story.reach(child, 5)
    child.send(signal.SIGSTOP)
    time.sleep(1)
    seen = len(runs.metrics(story.run))
    time.sleep(0.2)
    assert len(runs.metrics(story.run)) == seen
    child.send(signal.SIGCONT)
    assert child.wait() == 0, child.output


def stage(at: At, stand: list[int], left: str) -> Callable[[Scenario], None]:
    def hurt(story: Scenario) -> None:
        child = story.start(at=at)
        assert child.wait() == -signal.SIGKILL, child.output
        assert story.checkpoints == stand
        assert list(story.run.glob(f"checkpoints/{left}"))

    return hurt


PARTIAL = ".step-00000006.partial"
OLD = "step-00000002"
for words, at, stand, left in (
    ("before it is written", At(PARTIAL, "os.mkdir"), [2, 4], "step-00000004"),
    ("between its tensors and its state", At(f"{PARTIAL}/state.json", "open"), [2, 4], f"{PARTIAL}/optim.safetensors"),
    ("before the marker", At(f"{PARTIAL}/COMPLETE", "open"), [2, 4], f"{PARTIAL}/state.json"),
    ("before the rename", At(PARTIAL, "os.rename"), [2, 4], f"{PARTIAL}/COMPLETE"),
    ("before the oldest is deleted", At(f"{OLD}/COMPLETE", "os.remove"), [2, 4, 6], OLD),
    ("while the oldest is deleted", At("optim.safetensors", "os.remove"), [4, 6], f"{OLD}/optim.safetensors"),
):
    fault(f"SIGKILL of a checkpoint, {words}", RESUMES)(stage(at, stand, left))


@fault("killed while a checkpoint's tensors are written", RESUMES)
def torn(story: Scenario) -> None:
    child = story.start(largest=1_000_000, deadly=True)
    assert child.wait() == -signal.SIGXFSZ, child.output
    assert story.checkpoints == [2, 4]
    assert (story.run / "checkpoints" / PARTIAL).is_dir()


@fault("disk full: a checkpoint", f"{SAYS}older checkpoints remain; {RESUMES} after space is freed")
def no_room_for_a_checkpoint(story: Scenario) -> None:
    story.stopped(story.start(largest=1_000_000), "checkpoint could not be written")
    assert story.checkpoints == [2, 4]


@fault("disk full: metrics", f"{SAYS}{RESUMES} after space is freed")
def no_room_for_metrics(story: Scenario) -> None:
    child = story.start("train.checkpoint_every=1000")
    story.reach(child, 5)
    child.limit_files((story.run / "metrics.jsonl").stat().st_size + 10)
    story.stopped(child, f"train.run_dir={story.run}: File too large")


@fault("disk full: a real disk, at any write", f"{SAYS}{RESUMES} after space is freed")
def no_room(story: Scenario) -> None:
    aside = story.run.rename(story.folder / "aside")
    story.run.mkdir()
    with mounted(story.run, 40):
        shutil.copytree(aside, story.run, dirs_exist_ok=True)
        child = story.start()
        story.reach(child, 5)
        ballast = story.run / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, os.statvfs(story.run).f_bavail * os.statvfs(story.run).f_frsize)
        story.stopped(child, "No space left on device")
        ballast.unlink()
        shutil.rmtree(aside)
        shutil.copytree(story.run, aside)
    story.run.rmdir()
    aside.rename(story.run)


@fault("TensorBoard's files cannot be written, or its folder is deleted", "the run continues and prints a warning")
def no_board(story: Scenario) -> None:
    board = story.run / "tensorboard"
    child = story.start("train.stop_after_step=6")
    story.reach(child, 5)
    delete_at_once(board)
    board.write_text("a file in the folder's place")
    assert child.wait() == 0, child.output
    assert "tensorboard cannot be written" in child.output
    assert "Traceback" not in child.output
    board.unlink()
    child = story.start("train.stop_after_step=8")
    story.reach(child, 7)
    delete_at_once(board)
    assert child.wait() == 0, child.output


def delete_at_once(folder: Path) -> None:
    """Delete a folder into which a thread of the run writes: file by file it could be found not empty."""
    gone = folder.with_name(f".{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone)


@fault("the run's folder is read-only", f"{SAYS}{RESUMES} in a writable folder")
def no_pen(story: Scenario) -> None:
    with read_only(story.run):
        story.stopped(story.start(), f"train.run_dir={story.run}: cannot be written")


@fault("disk full, or a read-only folder: an export", f"{SAYS}an earlier export stays complete")
def no_room_for_an_export(story: Scenario) -> None:
    words = ["tools/export_backbone.py", str(story.run)]
    first = story.nursery.start(words, story.folder / "first")
    assert first.wait() == 0, first.output
    with read_only(story.run / "export"):
        story.stopped(story.nursery.start(words, story.folder / "third"), "Read-only file system")
    before = {path: path.read_bytes() for path in (story.run / "export").rglob("*") if path.is_file()}
    story.stopped(story.nursery.start(words, story.folder / "second", largest=100_000), "File too large")
    after = {path: path.read_bytes() for path in (story.run / "export").rglob("*") if path.is_file()}
    assert before == {path: content for path, content in after.items() if path in before}
    assert not after.keys() - before.keys()
    shutil.rmtree(story.run / "export")


def damaged(name: str, how: str) -> Callable[[Scenario], None]:
    def hurt(story: Scenario) -> None:
        file = story.newest / name
        if how == "missing":
            file.unlink()
        elif how == "empty":
            file.write_bytes(b"")
        else:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        child = story.start("train.stop_after_step=4")  # until the step of the corrupt one, which is written again
        assert child.wait() == 0, child.output
        assert "resuming after step 2" in child.output
        assert story.checkpoints == [2, 4]

    return hurt


for how, name in (
    ("one bit of the newest checkpoint's model is flipped", "model.safetensors"),
    ("the newest checkpoint's optimizer state is empty", "optim.safetensors"),
    ("the newest checkpoint's state is missing", "state.json"),
    ("the newest checkpoint's marker is missing", "COMPLETE"),
):
    kind = how.split()[-1]
    fault(how, "the previous checkpoint is used, and the corrupt one is written again")(damaged(name, kind))


@fault("all checkpoints are corrupt", f"{SAYS}the run does not start from scratch")
def none_whole(story: Scenario) -> None:
    aside = shutil.copytree(story.run / "checkpoints", story.folder / "aside")
    for file in story.run.glob("checkpoints/step-*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    story.stopped(story.start(), "no valid checkpoint")
    for file in story.run.glob("checkpoints/step-*/COMPLETE"):
        file.unlink()
    story.stopped(story.start(), "lacks COMPLETE")
    shutil.rmtree(story.run / "checkpoints")
    aside.rename(story.run / "checkpoints")


@fault("metrics and sample records truncated inside a line, TensorBoard's files corrupt", RESUMES)
def cut(story: Scenario) -> None:
    for file in (*story.run.glob("samples/*"), story.run / "metrics.jsonl", *story.run.glob("tensorboard/*")):
        with file.open("ab") as end:
            end.write(b'{"step": 5, "ids": [1, 2')


@fault("two runs in one folder", f"the second run: {SAYS}the first run continues")
def twice(story: Scenario) -> None:
    first = story.start()
    story.reach(first, 5)
    first.send(signal.SIGSTOP)
    story.stopped(story.start(), f": in use by process {first.pid}")
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.output


@fault("the clock jumps back three years while training, files have arbitrary times", "continues")
def clock(story: Scenario) -> None:
    draw = random.Random(0)
    for path in story.run.rglob("*"):
        os.utime(path, (draw.uniform(0, 4e9), draw.uniform(0, 4e9)))
    child = story.start(at=At(PARTIAL, "os.mkdir", back=1e8))
    assert child.wait() == 0, child.output
    times = [line["time"] for line in runs.metrics(story.run)]
    assert min(times) < times[0] - 9e7  # the clock has jumped


@fault(
    "all shards deleted while training",
    f"continues with the open shards; otherwise {SAYS}{RESUMES} after they are restored",
)
def no_shards(story: Scenario) -> None:
    aside = story.folder / "aside"
    aside.mkdir()
    child = story.start()
    story.reach(child, 5)
    for tar in story.faces.glob("*.tar"):
        tar.rename(aside / tar.name)
    assert child.wait() in (0, 1)
    assert child.code == 0 or "No such file" in child.last_line, child.output
    story.stopped(story.start(), "train-000000.tar")
    for tar in aside.iterdir():
        tar.rename(story.faces / tar.name)


def unfit(pattern: str, words: str) -> Callable[[Scenario], None]:
    def hurt(story: Scenario) -> None:
        file = sorted(story.faces.glob(pattern))[0]
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        story.stopped(story.start(), words)
        file.write_bytes(content)

    return hurt


for what, pattern, words in (
    ("a truncated tar", "train-*.tar", "bytes"),
    ("a truncated index", "train-*.idx", "index"),
    ("a truncated manifest", "manifest.json", "manifest.json"),
):
    fault(f"{what}, at the start", f"{SAYS}{RESUMES} with a valid file")(unfit(pattern, words))


@fault("an index that does not match its tar", f"{SAYS}{RESUMES} with a valid file")
def other_index(story: Scenario) -> None:
    file = sorted(story.faces.glob("train-*.idx"))[0]
    content = file.read_bytes()
    # As for a tar with one more block at its start.
    file.write_bytes(re.sub(rb" (\d+) (\d+) (\S+\.)", lambda m: b" %d %b %b" % (int(m[1]) - 512, m[2], m[3]), content))
    story.stopped(story.start(), "or its index is not the files that")
    file.write_bytes(content)


@fault(
    "a tar and its index replaced by others of the same size and count, under the same manifest",
    f"{SAYS}{RESUMES} with the original files",
)
def other_files(story: Scenario) -> None:
    tar = sorted(story.faces.glob("train-*.tar"))[0]
    before = {file: file.read_bytes() for file in (tar, tar.with_suffix(".idx"))}
    exchange_images(tar)
    assert tar.read_bytes() != before[tar]
    story.stopped(story.start(), f"{tar} or its index is not the files that {story.run} was trained on")
    for file, content in before.items():
        file.write_bytes(content)


@fault("a manifest that does not match its shards", f"{SAYS}{RESUMES} with a valid file")
def other_manifest(story: Scenario) -> None:
    file = story.faces / "manifest.json"
    content = file.read_text()
    told = json.loads(content)
    next(shard for shard in told["shards"] if shard["split"] == "train")["samples"] -= 1
    told["entries"] -= 1
    file.write_text(json.dumps(told))
    story.stopped(story.start("train.run_dir=" + str(story.folder / "fresh")), "manifest")
    story.stopped(story.start(), "shards")  # the run does not resume with other data either
    file.write_text(content)


def lines() -> list[str]:
    """Return the table in Markdown."""
    here = "`tests/faults/test_faults.py`"
    rows = [(each.what, each.promise, here) for each in FAULTS]
    rows += [(what, promise, f"`tests/{file}`") for what, promise, file, _ in COVERED_ELSEWHERE]
    return ["| fault | promised | test |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
