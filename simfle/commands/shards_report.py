"""What the tools that work on finished shards share: their folder as an argument, what they tell when they are done."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from simfle.commands.app import echo
from simfle.errors import UserError
from simfle.words import shell_line

if TYPE_CHECKING:
    from shards.manifest import Manifest


def show_made(out: Path, manifest: "Manifest") -> None:
    """How much is in the new folder, and what to run next."""
    counts: Counter[str] = Counter()
    for shard in manifest.shards:
        counts[shard.split] += shard.samples
    told = ", ".join(f"{split} {count}" for split, count in counts.items())
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    echo(f"{out}: {manifest.samples} samples ({told}) in {len(manifest.shards)} shards, {size:.1f} MB")
    echo(f"next: {shell_line('simfle', 'shards', 'verify', out)}")


SHEET, DUPLICATES = ".png", ".duplicates.jsonl"


def beside(folder: Path, ending: str) -> Path:
    """The file beside a folder of shards that a tool writes by default: SHARDS.png for shards in SHARDS."""
    full = folder.resolve()
    return full.with_name(full.name + ending)


def local(text: str) -> Path:
    """A folder of this machine. Raises UserError for a URL: these tools read shards in any order and more than once."""
    from shards.redact import shown
    from shards.remote import is_url

    if is_url(text):
        raise UserError(
            f"{shown(text)}: this works on folders of this machine; copy the shards here first "
            "(training and verify_shards read URLs themselves)"
        )
    return Path(text)
