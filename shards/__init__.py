"""Shards: face corpora as verified, deterministic WebDataset tars with an index and a manifest.

import shards
faces = shards.open("shards/mine")      # len(faces), faces[0], faces["key"], for item in faces, faces.dataset()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.reading.dataset import Sample, ShardDataset, open

__all__ = ["Sample", "ShardDataset", "open"]


def __getattr__(name: str) -> Any:
    """Import numpy and the decoders on first use (PEP 562), so that `--help` stays fast."""
    if name in __all__:
        from shards.reading import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module 'shards' has no attribute {name!r}")
