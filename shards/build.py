"""Build a folder of shards: plan, work in processes, put together. Interrupted anywhere, it goes on where it was.

Everything is made in OUT.partial: `work/` holds the plan and one result file for each finished shard, `shards/` the
tars and indexes. OUT appears by one rename when all is there. Each shard is a function of the plan alone, so neither
the number of workers nor an interruption can change a byte.
"""

import errno
import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from shards.copies import copies_across_splits
from shards.entry import REASONS, Entry, Rejected
from shards.errors import UserError
from shards.exclude import prepare
from shards.files import read_bytes, sync_folder, write_atomic
from shards.locks import try_lock
from shards.manifest import FORMAT, NAME, REJECTED, Manifest, ShardInfo, read_manifest, write_manifest
from shards.numbered import name_numbers
from shards.plan import Plan, Shard, digest_entries, make_plan
from shards.processes import on_processes, tell
from shards.request import Build
from shards.spelling import exists
from shards.work import Job, Result, read_result, write_shard
from shards.workshop import LOCK, is_of_build, refuse_others

MOST_NAMED = 10  # labels in a note
FEWEST_MISSING = 3  # files of a list without which it may still be meant


Progress = Callable[[str, int, int], None]  # stage, done, total
Written = Counter[tuple[str, str]]  # (split, label) -> samples; the label "" where there is none


@dataclass
class Report:
    """How a build ended. notes: what the user should know."""

    manifest: Manifest
    written: Written = field(default_factory=Counter)
    untouched: int = 0
    already: bool = False
    resumed: int = 0
    notes: list[str] = field(default_factory=list)


def build(
    request: Build,
    entries: Iterable[Entry | Rejected],
    progress: Progress,
    about: Callable[[Written], dict[str, Any]] = lambda written: {},
) -> Report:
    """Build the shards of `entries` (an iterable that can be gone through again) into `request.out`.

    about: what else the manifest's `build` shall say of what was written; asked before `out` appears.

    Raises:
        UserError: the output exists or belongs to another build, nothing to write, disk full, a worker died. What was
        finished stays in OUT.partial if going on makes sense; otherwise nothing is left.
    """
    out = request.out
    request.encode.check()
    entries = name_numbers(entries, request.rules.labels)
    if request.shard_samples < 1:
        raise UserError("--shard-samples must be at least 1")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return _compare(request, entries)
    request.decides()  # what is not installed is told before anything is made
    made = [folder for folder in request.partial.absolute().parents if not folder.exists()]
    with _lock(request.partial):
        try:
            with closing(_plan(request, entries, progress)) as plan:
                report = _write(request, plan, progress, about)
        except (UserError, OSError, sqlite3.Error, KeyboardInterrupt) as end:
            if not request.mark.exists():  # nothing is finished that a second start could use
                _discard(request.partial, made)
            if isinstance(end, OSError | sqlite3.Error):
                raise UserError(f"cannot build {out}: {_cause(end, request.partial)}") from None
            raise
        shutil.rmtree(request.partial, ignore_errors=True)  # who starts the same build now may be doing it too
    return report


def _cause(error: OSError | sqlite3.Error, partial: Path) -> str:
    """What failed, and what to do."""
    if isinstance(error, sqlite3.OperationalError) and "lock" in str(error):
        return (
            f"{error}: the file system of {partial} does not lock files as SQLite needs it (NFS, Lustre, FUSE). "
            "Fix: build on a local disk, then copy the shards"
        )
    if (isinstance(error, OSError) and error.errno == errno.EMFILE) or "unable to open database" in str(error):
        return f"{error}: too few files may be open. Fix: ulimit -n 4096, or fewer --workers, then rerun the command"
    return f"{error}; mend it and run the same command again"


def _compare(request: Build, entries: Iterable[Entry | Rejected]) -> Report:
    """OUT is there already: it is this very build, or it is refused."""
    if not (request.out / NAME).is_file():
        raise UserError(f"{request.out} exists and is no folder of shards; choose another output")
    manifest = read_manifest(request.out)
    if not is_same(request, manifest, entries):
        raise UserError(
            f"{request.out} holds shards of other images or options; choose another output or delete that folder"
        )
    # A build that was stopped between its last rename and its clean-up leaves its workshop.
    if is_of_build(request.partial):
        shutil.rmtree(request.partial, ignore_errors=True)
    return Report(manifest, already=True)


def is_same(request: Build, manifest: Manifest, entries: Iterable[Entry | Rejected]) -> bool:
    """Whether shards with this manifest are what the request would build."""
    entries = name_numbers(entries, request.rules.labels)
    return manifest.build.get("digest") == digest_entries(entries, request.rules, request.decides())


def _discard(partial: Path, made: list[Path]) -> None:
    """Remove the workshop, and the folders above it that were made for it, deepest first."""
    shutil.rmtree(partial)
    for folder in made:
        folder.rmdir()


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """One build at a time; the lock goes with the process, however it ends."""
    refuse_others(partial, build=True)
    try:
        (partial / "work").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {partial}: {error.strerror}; choose another output") from None
    with (partial / "work" / LOCK).open("w") as file:
        if not try_lock(file, partial):
            raise UserError(f"{partial} is being built by another process; wait for it or stop it")
        yield


def _plan(request: Build, entries: Iterable[Entry | Rejected], progress: Progress) -> Plan:
    """The plan in OUT.partial: a new one, or the one that stands there if it is the same."""
    base = request.partial / "work" / "plan.sqlite"
    counted = _counted(entries, progress)
    if request.mark.is_file():
        digest = digest_entries(counted, request.rules, request.decides())
        if json.loads(read_bytes(request.mark))["digest"] != digest:
            raise UserError(
                f"{request.partial} holds an unfinished build of other images or options; "
                "go on with the same ones, or delete that folder"
            )
        return Plan(base)
    digest = make_plan(base, counted, request.rules, request.decides(), request.shard_samples)
    plan = Plan(base)
    _check_plan(request, plan)
    _check_files(request, plan)
    (request.partial / "shards").mkdir(exist_ok=True)
    write_atomic(request.mark, json.dumps({"digest": digest}).encode())
    return plan


def _counted(entries: Iterable[Entry | Rejected], progress: Progress) -> Iterator[Entry | Rejected]:
    number = 0
    for number, entry in enumerate(entries, 1):
        if number % 1000 == 0:
            progress("listing", number, 0)
        yield entry
    progress("listing", number, number)


def _check_plan(request: Build, plan: Plan) -> None:
    if not plan.planned():
        raise UserError(_nothing(plan.reasons(), next(plan.rejected(), None)))
    splits = {shard.split for shard in plan.shards()}
    for split, fraction in (("val", request.rules.val_fraction), ("test", request.rules.test_fraction)):
        if fraction and split not in splits:
            raise UserError(
                f"no group fell into split {split}; take a larger --{split}-fraction or another --split-seed"
            )
    if "train" not in splits and (request.rules.val_fraction or request.rules.test_fraction):
        raise UserError("no group fell into split train; take smaller fractions or another --split-seed")


def _check_files(request: Build, plan: Plan) -> None:
    """Raise UserError where too many files of a list are missing: its paths mean something else, or a disk is away."""
    if request.max_missing >= 1:
        return
    total, missing = 0, []
    for path, source in plan.paths():
        total += 1
        if not exists(path):
            missing.append(source)
    if len(missing) >= FEWEST_MISSING and len(missing) > request.max_missing * total:
        raise UserError(
            f"{len(missing)} of {total} listed images are missing, such as {', '.join(map(repr, missing[:3]))}. "
            "Fix: name the folder that the paths are relative to with --images; --max-missing 1 builds without them"
        )


def _write(request: Build, plan: Plan, progress: Progress, about: Callable[[Written], dict[str, Any]]) -> Report:
    shards, labels = plan.shards(), plan.labels(request.rules.labels)
    excluded = prepare(request.exclude, request.partial / "work", request.workers, progress)
    job = Job(request.partial, labels, request.encode, request.model, excluded)
    for left in (request.partial / "shards").glob(".*.tmp"):
        left.unlink()
    todo = [shard for shard in shards if not (request.partial / "work" / f"{shard.name}.json").is_file()]
    total = plan.planned()
    before = total - sum(shard.entries for shard in todo)
    if before:
        progress("resuming", before, total)
    done = before

    def told(entries: int) -> None:
        nonlocal done
        done += entries
        progress("writing", done, total)

    for _ in on_processes(partial(write_shard, job, advance=tell), todo, request.workers, told):
        pass
    report = Report(_manifest(request, plan, shards, labels), resumed=len(shards) - len(todo))
    for result in _results(request.partial, shards):
        report.untouched += result.untouched
        for label, count in result.labels.items():
            report.written[result.split, label] += count
    more = about(report.written)
    report.manifest = replace(report.manifest, build=report.manifest.build | more)
    _appear(request, report.manifest)
    report.notes += _notes(request, plan, report)
    return report


def _results(partial: Path, shards: Iterable[Shard]) -> Iterator[Result]:
    for shard in shards:
        yield read_result(partial, shard)


def _manifest(request: Build, plan: Plan, shards: list[Shard], labels: tuple[str, ...]) -> Manifest:
    """What was made of the plan; rejected.jsonl is written on the way."""
    folder = request.partial / "shards"
    counts: Counter[str] = Counter()
    one: Rejected | None = None  # to tell, where there is nothing else
    infos = []
    extra = 0
    temporary = folder / f".{REJECTED}.tmp"
    with temporary.open("w") as lines:
        for item in plan.rejected():
            one = one or item
            counts[item.reason] += 1
            lines.write(json.dumps(asdict(item)) + "\n")
        for result in _results(request.partial, shards):
            if result.samples:
                infos.append(ShardInfo(result.file, result.split, result.samples, result.bytes, result.sha256))
            extra += result.extra
            for item in result.rejected:
                one = one or item
                counts[item.reason] += 1
                lines.write(json.dumps(asdict(item)) + "\n")
        lines.flush()
        os.fsync(lines.fileno())
    if not infos:
        request.mark.unlink()
        raise UserError(_nothing(counts, one))
    temporary.replace(folder / REJECTED)
    digest = json.loads(read_bytes(request.mark))["digest"]
    return Manifest(
        format=FORMAT,
        corpus=request.corpus,
        terms=request.terms,
        labels=labels,
        entries=plan.count(),
        rejected=dict(sorted(counts.items())),
        shards=tuple(infos),
        build=request.decides() | {"digest": digest},
        extra_samples=extra,
    )


def _appear(request: Build, manifest: Manifest) -> None:
    """The manifest, then the one rename that makes OUT appear."""
    folder = request.partial / "shards"
    write_manifest(folder, manifest)
    sync_folder(folder)
    folder.rename(request.out)
    sync_folder(request.out.parent)


def _notes(request: Build, plan: Plan, report: Report) -> Iterator[str]:
    manifest = report.manifest
    divided = plan.divided_groups()
    if divided:
        yield f"{divided} groups are in more than one split: the source's own splits divide them"
    copies = copies_across_splits(request.partial / "work", ((shard.split, shard.name) for shard in plan.shards()))
    if copies:
        yield (
            f"{copies} images are exact copies of images in another split, so a test may hold what was trained on; "
            "simfle shards duplicates lists them, --exclude builds without them"
        )
    drawn = request.rules.val_fraction or request.rules.test_fraction
    if drawn and plan.groupless() == plan.planned():
        yield "people are not known here, so the splits may share them; --group-pattern finds the person in a path"
    if request.rules.group_pattern and plan.groupless():
        yield f"{plan.groupless()} entries do not match --group-pattern; each is a group of its own"
    if people := manifest.rejected.get("excluded_person"):
        yield (
            f"{people} images left out because people of the same name are in the shards of --exclude; where their "
            "names mean other people, as numbers of two corpora do, use --exclude-images-only"
        )
    for split in manifest.splits:
        absent = [label for label in manifest.labels if not report.written[split, label]]
        if absent:
            more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
            yield f"no sample in split {split} has the label {', '.join(absent[:MOST_NAMED])}{more}"


def _nothing(reasons: dict[str, int], one: Rejected | None) -> str:
    """That all was rejected, and why one of it was: no rejected.jsonl is left to look into."""
    example = f"; one of them: {one.source}: {one.reason}, {one.detail or REASONS[one.reason]}" if one else ""
    return f"nothing to write: every entry was rejected ({_counts(reasons)}){example}"


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
