"""Build a folder of shards: plan, write shards in worker processes, publish. An interrupted build resumes.

All files are created in OUT.partial: `work/` holds the plan and one result file per finished shard, `shards/` the tars
and indexes. A single rename publishes OUT when everything is complete. Each shard depends on the plan only, so neither
the number of workers nor an interruption can change a byte.
"""

import difflib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from shards.build.exclusion import build_exclusion_index
from shards.build.failures import describe_failure
from shards.build.numbered_labels import map_numbered_labels
from shards.build.plan import BuildPlan, ShardSpec, digest_entries, make_plan
from shards.build.shard_task import ShardJob, ShardResult, read_result, write_shard
from shards.build.spec import BuildSpec
from shards.build.split_copies import count_copies
from shards.entry import REJECT_REASONS, Entry, Rejected
from shards.errors import UserError
from shards.format.manifest import FORMAT, NAME, REJECTED, Manifest, ShardInfo, read_manifest, write_manifest
from shards.io.atomic import publish_dir, read_bytes, replacing, write_atomic
from shards.io.locks import try_lock
from shards.io.staging import LOCK, delete_build, is_build_staging, refuse_foreign_files
from shards.io.unicode_paths import exists
from shards.io.worker_pool import parallel_map, report_progress
from shards.rules import TEST, TRAIN, VAL

MAX_NAMED = 10  # maximum number of labels in a note
FEWEST_MISSING = 3  # number of missing files that is always tolerated


ProgressCallback = Callable[[str, int, int], None]  # stage, done, total
LabelCounts = Counter[tuple[str, str]]  # (split, label) -> samples; label "" for samples without one


@dataclass
class BuildReport:
    """Result of a build. `notes` contains information for the user."""

    manifest: Manifest
    written: LabelCounts = field(default_factory=Counter)
    bytes_kept: int = 0
    up_to_date: bool = False
    resumed: int = 0
    notes: list[str] = field(default_factory=list)


def build(
    request: BuildSpec,
    entries: Iterable[Entry | Rejected],
    progress: ProgressCallback,
    extra_manifest: Callable[[LabelCounts], dict[str, Any]] = lambda written: {},
) -> BuildReport:
    """Build the shards of `entries` in `request.out`.

    Args:
        request: specification of the build.
        entries: listing of the corpus; iterated several times.
        progress: called with stage, done, total.
        extra_manifest: returns extra fields for the manifest's `build` from the label counts; called before `out` is
            published.

    Raises:
        UserError: If the output exists or belongs to another build, there is nothing to write, the disk is full, or a
            worker died. Finished work remains in OUT.partial if the build can resume; otherwise nothing remains.
    """
    out = request.out
    request.encode.check()
    entries = map_numbered_labels(entries, request.rules.labels)
    if request.shard_samples < 1:
        raise UserError(f"--shard-samples={request.shard_samples}: too small. Fix: pass at least 1.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return _check_existing(request, entries)
    request.digest_options()  # reports missing packages before anything is created
    made = [folder for folder in request.staging_dir.absolute().parents if not folder.exists()]
    with _lock(request.staging_dir):
        try:
            with closing(_plan(request, entries, progress)) as plan:
                report = _write(request, plan, progress, extra_manifest)
        except (UserError, OSError, sqlite3.Error, KeyboardInterrupt) as end:
            if not request.plan_marker.exists():  # a restart could reuse nothing
                _clean_up(request.staging_dir, made)
            if isinstance(end, OSError | sqlite3.Error):
                raise UserError(f"cannot build {out}: {describe_failure(end, request.staging_dir)}") from None
            raise
        delete_build(request.staging_dir)
    return report


def _check_existing(request: BuildSpec, entries: Iterable[Entry | Rejected]) -> BuildReport:
    """Accept an existing OUT if it is the same build; otherwise raise UserError."""
    if not (request.out / NAME).is_file():
        raise UserError(f"{request.out} exists and is not a folder of shards. Fix: choose another output.")
    manifest = read_manifest(request.out)
    if not is_up_to_date(request, manifest, entries):
        raise UserError(
            f"{request.out} holds shards of other images or options. Fix: choose another output, or delete that folder."
        )
    # A build killed between its last rename and its cleanup leaves its staging folder.
    if is_build_staging(request.staging_dir):
        delete_build(request.staging_dir)
    return BuildReport(manifest, up_to_date=True)


def is_up_to_date(request: BuildSpec, manifest: Manifest, entries: Iterable[Entry | Rejected]) -> bool:
    """Return whether shards with this manifest are equal to those that the request would produce."""
    entries = map_numbered_labels(entries, request.rules.labels)
    return manifest.build.get("digest") == digest_entries(entries, request.rules, request.digest_options())


def _clean_up(partial: Path, made: list[Path]) -> None:
    """Delete the staging folder and the parents that were created for it, deepest first."""
    delete_build(partial)
    for folder in made:
        folder.rmdir()


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """Allow one build at a time; the lock is released when the process ends."""
    refuse_foreign_files(partial, build=True)
    try:
        (partial / "work").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{partial} cannot be created ({error.strerror}). Fix: choose another output.") from None
    with (partial / "work" / LOCK).open("w") as file:
        if not try_lock(file, partial):
            raise UserError(f"{partial} is being built by another process. Fix: wait for it, or stop it.")
        yield


def _plan(request: BuildSpec, entries: Iterable[Entry | Rejected], progress: ProgressCallback) -> BuildPlan:
    """Return the plan in OUT.partial: the existing one if it is the same, else a new one."""
    base = request.staging_dir / "work" / "plan.sqlite"
    counted = _counted(entries, progress)
    if request.plan_marker.is_file():
        digest = digest_entries(counted, request.rules, request.digest_options())
        if json.loads(read_bytes(request.plan_marker))["digest"] != digest:
            raise UserError(
                f"{request.staging_dir} holds an unfinished build of other images or options. "
                "Fix: rerun with the same images and options, or delete that folder."
            )
        return BuildPlan(base)
    digest = make_plan(base, counted, request.rules, request.digest_options(), request.shard_samples)
    plan = BuildPlan(base)
    _check_plan(request, plan)
    _check_files(request, plan)
    (request.staging_dir / "shards").mkdir(exist_ok=True)
    write_atomic(request.plan_marker, json.dumps({"digest": digest}).encode())
    return plan


def _counted(entries: Iterable[Entry | Rejected], progress: ProgressCallback) -> Iterator[Entry | Rejected]:
    number = 0
    for number, entry in enumerate(entries, 1):
        if number % 1000 == 0:
            progress("listing", number, 0)
        yield entry
    progress("listing", number, number)


def _check_plan(request: BuildSpec, plan: BuildPlan) -> None:
    if not plan.planned():
        raise UserError(_nothing_to_write(plan.reasons(), next(plan.rejected(), None)))
    splits = {shard.split for shard in plan.shards()}
    for split, fraction in (("val", request.rules.val_fraction), ("test", request.rules.test_fraction)):
        if fraction and split not in splits:
            raise UserError(f"no group is in split {split}. Fix: increase --{split}-fraction or change --split-seed.")
    if "train" not in splits and (request.rules.val_fraction or request.rules.test_fraction):
        raise UserError("no group is in split train. Fix: lower the fractions or change --split-seed.")


def _check_files(request: BuildSpec, plan: BuildPlan) -> None:
    """Raise UserError if too many listed files are missing, as with a wrong base folder or an unmounted disk."""
    if request.max_missing >= 1:
        return
    total, missing = 0, []
    for path, source in plan.paths():
        total += 1
        if not exists(path):
            missing.append(source)
    if len(missing) >= FEWEST_MISSING and len(missing) > request.max_missing * total:
        raise UserError(
            f"{len(missing)} of {total} listed images are missing, for example {', '.join(map(repr, missing[:3]))}. "
            "Fix: pass the base folder of the paths with --images, or add --max-missing 1 to build without them."
        )


def _write(
    request: BuildSpec,
    plan: BuildPlan,
    progress: ProgressCallback,
    extra_manifest: Callable[[LabelCounts], dict[str, Any]],
) -> BuildReport:
    shards, labels = plan.shards(), plan.labels(request.rules.labels)
    excluded = build_exclusion_index(request.exclude, request.staging_dir / "work", request.workers, progress)
    job = ShardJob(request.staging_dir, labels, request.encode, request.model, excluded)
    for left in (request.staging_dir / "shards").glob(".*.tmp"):
        left.unlink()
    todo = [shard for shard in shards if not (request.staging_dir / "work" / f"{shard.name}.json").is_file()]
    total = plan.planned()
    before = total - sum(shard.entries for shard in todo)
    if before:
        progress("resuming", before, total)
    done = before

    def told(entries: int) -> None:
        nonlocal done
        done += entries
        progress("writing", done, total)

    for _ in parallel_map(partial(write_shard, job, advance=report_progress), todo, request.workers, told):
        pass
    report = BuildReport(_manifest(request, plan, shards, labels), resumed=len(shards) - len(todo))
    for result in _results(request.staging_dir, shards):
        report.bytes_kept += result.bytes_kept
        for label, count in result.labels.items():
            report.written[result.split, label] += count
    more = extra_manifest(report.written)
    report.manifest = replace(report.manifest, build=report.manifest.build | more)
    _publish(request, report.manifest)
    report.notes += _notes(request, plan, report)
    return report


def _results(partial: Path, shards: Iterable[ShardSpec]) -> Iterator[ShardResult]:
    for shard in shards:
        yield read_result(partial, shard)


def _manifest(request: BuildSpec, plan: BuildPlan, shards: list[ShardSpec], labels: tuple[str, ...]) -> Manifest:
    """Write rejected.jsonl and return the manifest of the written shards."""
    folder = request.staging_dir / "shards"
    counts: Counter[str] = Counter()
    one: Rejected | None = None  # an example for the error message
    infos = []
    extra = 0
    with replacing(folder / REJECTED) as lines:
        for item in plan.rejected():
            one = one or item
            counts[item.reason] += 1
            lines.write(json.dumps(asdict(item)).encode() + b"\n")
        for result in _results(request.staging_dir, shards):
            if result.samples:
                infos.append(ShardInfo(result.file, result.split, result.samples, result.bytes, result.sha256))
            extra += result.extra
            for item in result.rejected:
                one = one or item
                counts[item.reason] += 1
                lines.write(json.dumps(asdict(item)).encode() + b"\n")
        if not infos:
            request.plan_marker.unlink()
            raise UserError(_nothing_to_write(counts, one))
    digest = json.loads(read_bytes(request.plan_marker))["digest"]
    return Manifest(
        format=FORMAT,
        corpus=request.corpus,
        terms=request.terms,
        labels=labels,
        entries=plan.count(),
        rejected=dict(sorted(counts.items())),
        shards=tuple(infos),
        build=request.digest_options() | {"digest": digest},
        extra_samples=extra,
    )


def _publish(request: BuildSpec, manifest: Manifest) -> None:
    """Write the manifest, then publish OUT with one rename."""
    folder = request.staging_dir / "shards"
    write_manifest(folder, manifest)
    publish_dir(folder, request.out)


def _notes(request: BuildSpec, plan: BuildPlan, report: BuildReport) -> Iterator[str]:
    manifest = report.manifest
    divided = plan.groups_across_splits()
    if divided:
        yield f"{divided} groups are in more than one split of the source"
    copies = count_copies(request.staging_dir / "work", ((shard.split, shard.name) for shard in plan.shards()))
    if copies.across:
        yield (
            f"{copies.across} images are exact copies of images in another split, so test splits may contain training "
            "images. Fix: list them with simfle shards duplicates, or build with --exclude"
        )
    if copies.within:
        yield (
            f"{copies.within} images are exact copies of other images in their split, so each counts several times. "
            "Fix: list them with simfle shards duplicates, then remove them with simfle shards remove --list"
        )
    if copies.relabeled:
        yield f"{copies.relabeled} images occur with different labels. Fix: list them with simfle shards duplicates"
    yield from _people_notes(request, plan)
    if people := manifest.rejected.get("excluded_person"):
        yield (
            f"{people} images were excluded because --exclude has people of the same name; if such names "
            "belong to different people (for example numbers of two corpora), use --exclude-images-only"
        )
    yield from _odd_names(manifest)
    for split in manifest.splits:
        absent = [label for label in manifest.labels if not report.written[split, label]]
        if absent:
            more = f" and {len(absent) - MAX_NAMED} more" if len(absent) > MAX_NAMED else ""
            yield f"no sample in split {split} has the label {', '.join(absent[:MAX_NAMED])}{more}"


def _odd_names(manifest: Manifest) -> Iterator[str]:
    """Return notes about splits and labels that look like mistakes."""
    for split in manifest.splits:
        near = difflib.get_close_matches(split, (TRAIN, VAL, TEST), n=1, cutoff=0.7)
        if near and split != near[0]:
            yield f"split {split} is not {near[0]}, the name that training and evaluation use"
    if len(manifest.labels) > MAX_NAMED and 2 * len(manifest.labels) > manifest.samples:
        yield (
            f"{len(manifest.labels)} labels for {manifest.samples} images: does the label column hold names of files "
            "or people?"
        )


def _people_notes(request: BuildSpec, plan: BuildPlan) -> Iterator[str]:
    """Return one note if people are unknown and several splits may share them."""
    unknown, planned = plan.ungrouped_count(), plan.planned()
    similar, example = plan.similar_groups()
    if similar:
        yield (
            f"{similar} names of people differ only in upper and lower case, such as {' and '.join(example)}; they "
            "count as different people"
        )
    if not unknown:
        return
    if request.rules.group_pattern:
        yield f"{unknown} entries do not match --group-pattern; each is a separate group"
    elif len({shard.split for shard in plan.shards()}) > 1:
        who = "people are unknown" if unknown == planned else f"people of {unknown} of {planned} images are unknown"
        yield f"{who}, so splits may share them. Fix: add --group-pattern to find the person in a path"


def _nothing_to_write(reasons: dict[str, int], one: Rejected | None) -> str:
    """Return the message for a build whose entries are all rejected, with one example, as no rejected.jsonl remains."""
    example = f"; for example {one.source}: {one.reason}, {one.detail or REJECT_REASONS[one.reason]}" if one else ""
    return f"nothing to write: every entry was rejected ({_counts(reasons)}){example}"


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
