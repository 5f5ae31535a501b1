"""tools/merge_shards.py: several folders of shards as one."""

from pathlib import Path
from typing import Annotated

import typer

from simfle.commands.app import command, echo
from simfle.commands.shards_report import local
from simfle.words import shell_line, word


def merge_shards(
    folders: Annotated[
        list[Path], typer.Argument(metavar="SHARDS... OUT", parser=local, help="Folders to merge, then the new one.")
    ],
    collisions: Annotated[
        str, typer.Option(help="Keys that several folders have: refuse, or suffix, which renames the later ones.")
    ] = "refuse",
    corpus: Annotated[str, typer.Option(help="Name of the corpus in the manifest; default: the names joined.")] = "",
    shard_samples: Annotated[int, typer.Option(help="Most samples in one shard.")] = 2048,
) -> None:
    """Copy the samples of several folders into one. Labels are matched by name; images stay byte for byte."""
    from shards.merge import merge
    from simfle.commands.build_report import Meter
    from simfle.commands.shards_report import show_made

    out = folders[-1]
    with Meter() as meter:
        merged = merge(folders[:-1], out, collisions, corpus, shard_samples, meter)
    if merged.manifest.terms:
        echo(f"terms of use: {merged.manifest.terms}")
    show_made(out, merged.manifest)
    if merged.renamed:
        echo(f"{merged.renamed} samples got another key, since an earlier folder has theirs")
    if merged.renumbered:
        echo(f"{merged.renumbered} samples got another number for the same label")
    if merged.shared:
        echo(
            f"note: {merged.shared} names of people (groups) are in several folders and count as one person now, "
            "to remove, split and every test; if the same names mean other people, as numbers of two corpora do, "
            f"delete {out} and train on the folders as they are: {shell_line(word('data.shards', folders[:-1]))}"
        )
    if merged.divided:
        split = shell_line("simfle", "shards", "split", out, f"{out}-split", "--into", "train=0.8,test=0.2")
        echo(
            f"note: {merged.divided} people (groups) are in more than one split, so a test may meet whom training has "
            f"seen; to divide anew by person: {split}"
        )


main = command(merge_shards)
