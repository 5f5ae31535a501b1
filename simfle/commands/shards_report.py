"""What the tools that make shards from shards tell when they are done."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from shards.manifest import Manifest


def show_made(out: Path, manifest: "Manifest") -> None:
    """How much is in the new folder, and what to run next."""
    counts: Counter[str] = Counter()
    for shard in manifest.shards:
        counts[shard.split] += shard.samples
    told = ", ".join(f"{split} {count}" for split, count in counts.items())
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    typer.echo(f"{out}: {manifest.samples} samples ({told}) in {len(manifest.shards)} shards, {size:.1f} MB")
    typer.echo(f"next: python tools/verify_shards.py {out}")
