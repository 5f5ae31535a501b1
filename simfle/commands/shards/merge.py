"""`simfle shards merge`: merge several folders of shards."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards.output import local
from simfle.config.overrides import format_override, shell_line


def merge_shards(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="SHARDS... OUT", parser=local, help="folders to merge, then the folder to create"),
    ],
    on_collision: Annotated[
        str, typer.Option(help="if several folders have the same key: refuse, or suffix (rename later samples)")
    ] = "refuse",
    corpus: Annotated[str, typer.Option(help="name of the corpus in the manifest (default: the names joined)")] = "",
    shard_samples: Annotated[int, typer.Option(help="maximum number of samples per shard")] = 2048,
) -> None:
    """Copy the samples of several folders into one. Labels are matched by name; images are copied byte for byte."""
    from shards.edit.merge import merge
    from simfle.commands.shards.output import show_made
    from simfle.runtime.build_meter import ProgressMeter

    out = folders[-1]
    with ProgressMeter() as meter:
        merged = merge(folders[:-1], out, on_collision, corpus, shard_samples, meter)
    if merged.manifest.terms:
        echo(f"terms of use: {merged.manifest.terms}")
    show_made(out, merged.manifest)
    if merged.renamed_keys:
        echo(f"{merged.renamed_keys} samples were renamed, because an earlier folder has the same key")
    if merged.relabeled:
        echo(f"{merged.relabeled} samples got another id for the same label")
    if merged.shared_people:
        echo(
            f"note: {merged.shared_people} person names (groups) occur in several folders and now count as one person "
            "for remove, split and tests. If equal names mean different people, such as numbers in two corpora, delete "
            f"{out} and train on the separate folders: {shell_line(format_override('data.shards', folders[:-1]))}"
        )
    if merged.people_across_splits:
        split = shell_line("simfle", "shards", "split", out, f"{out}-split", "--splits", "train=0.8,test=0.2")
        echo(
            f"note: {merged.people_across_splits} people (groups) are in more than one split, so people of the test "
            f"split may also be in the training split. To split by person: {split}"
        )


main = command(merge_shards)
