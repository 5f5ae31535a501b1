"""Helpers of the tests of sources: synthetic images, a source's listing, and a real build of it."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.build.builder import build
from shards.build.spec import BuildSpec
from shards.entry import REJECT_REASONS, Entry, Rejected
from shards.format.manifest import Manifest, read_manifest


def photo(seed: int = 0, width: int = 24, height: int = 20, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """The file of a small smooth image, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, kind)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    """A file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def entries(source: Iterable[Entry | Rejected]) -> dict[str, Entry]:
    """Return a source's listing by key; check that a second iteration is equal and that no key occurs twice."""
    found = [item for item in source if isinstance(item, Entry)]
    assert found == [item for item in source if isinstance(item, Entry)]
    assert len({item.key for item in found}) == len(found)
    return {item.key: item for item in found}


def rejects(source: Iterable[Entry | Rejected]) -> dict[str, str]:
    """Source -> reason of what a source itself rejects."""
    found = [item for item in source if isinstance(item, Rejected)]
    assert all(item.reason in REJECT_REASONS for item in found)
    return {item.source: item.reason for item in found}


def check_accounts(source: Iterable[Entry | Rejected], manifest: Manifest, out: Path) -> None:
    """Everything that a source lists is written or in rejected.jsonl, with one of the known reasons."""
    found = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert manifest.entries == len(list(source)) == manifest.samples - manifest.extra_samples + len(found)
    assert Counter(item["reason"] for item in found) == Counter(manifest.rejected)
    assert set(manifest.rejected) <= set(REJECT_REASONS)
    assert all(set(item) == {"source", "reason", "detail"} for item in found)


def built(
    source: Iterable[Entry | Rejected], out: Path, workers: int = 1
) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    """Build shards of a source: the manifest, and by source path the json of each sample with its image ("jpeg")."""
    request = BuildSpec(out, "test", {}, shard_samples=4, workers=workers)
    build(request, source, lambda stage, done, total: None)
    manifest = read_manifest(out)
    check_accounts(source, manifest, out)
    found = {}
    for info in manifest.shards:
        with tarfile.open(out / info.file) as tar:
            members = {item.name: tar.extractfile(item).read() for item in tar}
        for name, content in members.items():
            if name.endswith(".json"):
                sample = json.loads(content)
                found[sample["source"]] = sample | {"jpeg": members[name.removesuffix("json") + "jpg"]}
    return manifest, found


def pixels(jpeg: bytes) -> np.ndarray:
    """Decoded pixels [H, W, 3] as integers."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
