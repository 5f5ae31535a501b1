"""Build shards in a local folder from the command line's options."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from simfle.commands.app import echo
from simfle.commands.shards.build_options import BuildOptions, SourceInput
from simfle.commands.shards.output import DUPLICATES, default_output_beside
from simfle.config.overrides import shell_line
from simfle.errors import UserError

if TYPE_CHECKING:
    from shards.build.builder import BuildReport
    from shards.build.spec import BuildSpec
    from shards.imaging.codec import EncodeOptions


def execute(out: Path, corpus: SourceInput, common: BuildOptions) -> None:
    """Run the build and print its report."""
    from simfle.commands.shards.build_output import show

    request = make_request(out, corpus, common)
    for root in corpus.roots:
        if out.resolve().is_relative_to(root.resolve()):
            raise UserError(f"OUT={out}: inside the source {root}. Fix: choose a folder outside the source.")
    report, rate = build_here(request, corpus)
    if common.near_duplicates:
        report.notes += near_duplicate_notes(request, default_output_beside(out, DUPLICATES))
    show(out, report, rate)


def build_here(request: "BuildSpec", corpus: SourceInput) -> "tuple[BuildReport, float]":
    """Build into the request's local folder; return the report and the images/s of the last stage."""
    from shards.build.builder import build
    from shards.printable import one_line
    from simfle.runtime.build_meter import ProgressMeter

    if request.terms:
        echo(f"terms of use of {request.corpus}: {request.terms}")
    if corpus.needs_crop and request.encode.crop is None and request.encode.align is None:
        echo(
            f"note: images of {corpus.name} are whole photos that may show several people; a box marks the labeled "
            "face. --crop 0.25 crops to the box with a margin of 0.25 of its sides; --align also levels the eyes"
        )
    for line in corpus.before():
        echo(one_line(line))
    with ProgressMeter() as meter:
        try:
            report = build(request, corpus.entries, meter, partial(corpus.about, request))
        except KeyboardInterrupt:
            if request.staging_dir.exists():
                echo(f"finished shards are kept in {request.staging_dir}; rerun the command to resume", err=True)
            raise
    report.notes += corpus.notes()
    corpus.finish(request, report)
    return report, meter.rate


def near_duplicate_notes(request: "BuildSpec", target: Path | None) -> list[str]:
    """Find exact and near duplicates in the shards of a build; list them in `target` and return a note."""
    from shards.dedup.duplicates import find_duplicates
    from shards.dedup.perceptual_hash import NEAR
    from shards.io.atomic import write_atomic
    from shards.redact import to_json
    from simfle.runtime.build_meter import ProgressMeter

    with ProgressMeter() as meter:
        lines = find_duplicates(request.out, None, (), NEAR, request.workers, meter)
    if not lines:
        return ["no exact or near duplicates"]
    near = sum(line["kind"] == "near" for line in lines)
    across = sum(line["split"] != line["of_split"] for line in lines)
    other = sum(line.get("label") != line.get("of_label") for line in lines)
    found = (
        f"{len(lines) - near} exact and {near} near duplicates, of which {across} have their copy in another split and "
        f"{other} have another label"
    )
    if target is None:
        return [found]
    write_atomic(target, "".join(to_json(line) + "\n" for line in lines).encode())
    remove = shell_line("simfle", "shards", "remove", request.out, "--list", target, "--reason", "duplicates")
    return [f"{found}; listed in {target}. To remove them: {remove}"]


def make_request(out: Path, corpus: SourceInput, common: BuildOptions) -> "BuildSpec":
    """Return the build specification for the command line's options."""
    from shards.build.exclusion import ExclusionOptions, parse_excluded
    from shards.build.spec import BuildSpec
    from shards.rules import EntryRules, normalize_label

    if common.group_pattern and corpus.options.get("columns", {}).get("group"):
        raise UserError("--group-column and --group-pattern: both define the person. Fix: pass only one.")
    names = tuple(normalize_label(name) or "" for name in common.labels.split(",")) if common.labels else corpus.labels
    if "" in names:
        raise UserError(f"--labels={common.labels!r}: a name is empty. Fix: write them as happiness,neutral,anger.")
    return BuildSpec(
        out=out,
        corpus=common.corpus or corpus.name,
        source=corpus.options,
        rules=EntryRules(
            labels=names,
            labeled=corpus.labeled and not common.keep_unlabeled,
            group_pattern=common.group_pattern,
            val_fraction=common.val_fraction,
            test_fraction=common.test_fraction,
            split_seed=common.split_seed,
        ),
        encode=_encode_options(common),
        face_model=common.face_model,
        max_missing=corpus.max_missing,
        exclude=ExclusionOptions(
            tuple(map(parse_excluded, common.exclude or ())), common.exclude_hamming, not common.exclude_images_only
        ),
        shard_samples=common.shard_samples,
        terms=common.terms or corpus.terms,
        workers=common.workers if common.workers > 0 else len(os.sched_getaffinity(0)),
    )


def _encode_options(common: BuildOptions) -> "EncodeOptions":
    from shards.imaging.align import AlignOptions
    from shards.imaging.codec import EncodeOptions

    return EncodeOptions(
        quality=common.quality,
        max_pixels=common.max_pixels,
        strip_metadata=common.strip_metadata,
        crop=common.crop,
        shorter_side=common.shorter_side,
        align=AlignOptions(common.min_face_size, common.min_confidence, common.max_faces) if common.align else None,
    )
