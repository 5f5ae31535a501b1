"""Shared code of the commands for finished shards: folder argument and final report."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from simfle.commands.app import echo
from simfle.config.overrides import shell_line
from simfle.errors import UserError

if TYPE_CHECKING:
    from shards.format.manifest import Manifest


def show_made(out: Path, manifest: "Manifest") -> None:
    """Print the size of the new folder and the next command."""
    counts: Counter[str] = Counter()
    for shard in manifest.shards:
        counts[shard.split] += shard.samples
    told = ", ".join(f"{split} {count}" for split, count in counts.items())
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    echo(f"{out}: {manifest.samples} samples ({told}) in {len(manifest.shards)} shards, {size:.1f} MB")
    echo(f"next: {shell_line('simfle', 'shards', 'verify', out)}")


SHEET, DUPLICATES = ".png", ".duplicates.jsonl"


def default_output_beside(folder: Path, ending: str) -> Path:
    """Return a command's default output beside a folder of shards: SHARDS.png for SHARDS."""
    full = folder.resolve()
    return full.with_name(full.name + ending)


def local(text: str) -> Path:
    """Parse a local folder. Raises UserError for a URL, because the commands read shards repeatedly in any order."""
    from shards.io.urls import is_url
    from shards.redact import redact_url

    if is_url(text):
        raise UserError(
            f"{redact_url(text)}: not a local folder. Fix: copy the shards to this machine "
            "(only training and simfle shards verify can read URLs)."
        )
    return Path(text)
