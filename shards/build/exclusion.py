"""Exclude images and people of other shards (such as a benchmark's test split) from a build.

An image is excluded if it is an exact or near duplicate (shards.dedup.duplicates) of an image in those shards. A person
is excluded if the shards contain a person of the same name. People are compared by group name, ignoring case, spaces
and punctuation.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shards.dedup.duplicates import HashIndex, check_distance
from shards.dedup.perceptual_hash import (
    HASH_DTYPE,
    NEAR,
    VERSION,
    PerceptualHashes,
    perceptual_hash,
    perceptual_hash_shards,
)
from shards.errors import UserError
from shards.format.manifest import NAME, Manifest, ShardInfo, read_manifest
from shards.format.samples import content_digest, read_samples, select_shards
from shards.imaging.codec import ImageRejected
from shards.io.atomic import read_bytes, regular_path, write_atomic
from shards.io.urls import is_url
from shards.redact import redact_url
from shards.rules import normalize_unicode


@dataclass(frozen=True)
class ExcludedShards:
    """Shards whose images and people are excluded: a folder and one of its splits ("" = all)."""

    folder: Path
    split: str = ""

    def shards(self) -> tuple[Manifest, list[ShardInfo]]:
        """Return the manifest and the shards of the split."""
        manifest = read_manifest(self.folder)
        return manifest, select_shards(manifest, (self.split,) if self.split else (), f"--exclude {self.folder}")


@dataclass(frozen=True)
class ExclusionOptions:
    """Shards and rules of an exclusion. people: also exclude by person, not only by image."""

    shards: tuple[ExcludedShards, ...] = ()
    distance: int = NEAR
    people: bool = True

    def digest_options(self) -> dict[str, Any]:
        """Return the options that determine the bytes of a build: contents, not paths."""
        if not self.shards:
            return {}
        check_distance(self.distance)
        content = []
        for excluded in self.shards:
            manifest, shards = excluded.shards()
            content.append({"corpus": manifest.corpus, "split": excluded.split, "content": content_digest(shards)})
        return {
            "exclude": {"shards": content, "distance": self.distance, "people": self.people, "fingerprint": VERSION}
        }


def parse_excluded(text: str) -> ExcludedShards:
    """Parse `FOLDER` or `FOLDER:SPLIT`. Raises UserError for a URL and if there are no such shards."""
    if is_url(text):
        raise UserError(f"--exclude={redact_url(text)}: is a URL. Fix: pass a local copy of the shards.")
    folder, colon, split = text.rpartition(":")
    if not colon or (Path(text) / NAME).is_file():  # a folder name can contain a colon
        folder, split = text, ""
    excluded = ExcludedShards(Path(folder), split)
    excluded.shards()
    return excluded


def build_exclusion_index(
    exclude: ExclusionOptions, folder: Path, workers: int, progress: Callable[[str, int, int], None]
) -> Path | None:
    """Read the excluded shards once for all workers and restarts; return the file for `load_filter`.

    Only perceptual hashes, keys and group names are stored.
    """
    if not exclude.shards:
        return None
    path = folder / "exclude.json"
    decides = exclude.digest_options()
    if path.is_file() and json.loads(read_bytes(path))["decides"] == decides:  # written last
        return path
    parts: list[PerceptualHashes] = []
    keys: list[str] = []
    people: dict[str, str] = {}
    chosen = [(excluded.folder, *excluded.shards()) for excluded in exclude.shards]
    total = sum(info.samples for _, _, shards in chosen for info in shards)
    for place, manifest, shards in chosen:
        before = len(keys)
        progress("reading excluded", before, total)
        for info in shards:
            for sample in read_samples(place, info, only=("json",)):
                keys.append(f"{sample.key} in {manifest.corpus} {info.split}")
                if exclude.people and sample.metadata.get("group") is not None:
                    people.setdefault(
                        normalize_person(str(sample.metadata["group"])), f"{manifest.corpus} {info.split}"
                    )
        parts.append(
            _perceptual_hashes(place, shards, folder, workers, lambda done: progress("reading excluded", done, total))
        )
    np.save(folder / "exclude.npy", np.concatenate(parts) if parts else np.zeros(0, HASH_DTYPE))
    content = {"decides": decides, "distance": exclude.distance, "keys": keys, "people": people}
    write_atomic(path, json.dumps(content).encode())
    return path


def _perceptual_hashes(
    place: Path, shards: list[ShardInfo], folder: Path, workers: int, progress: Callable[[int], None]
) -> PerceptualHashes:
    path = folder / "excluding.npy"
    try:
        return np.array(perceptual_hash_shards(place, shards, path, workers, progress))
    finally:
        path.unlink(missing_ok=True)


def normalize_person(name: str) -> str:
    """Normalize a person's name for comparison: 'Aaron Eckhart', 'aaron_eckhart' -> 'aaron_eckhart'."""
    return re.sub(r"[\W_]+", "_", normalize_unicode(name).casefold()).strip("_")


class ExclusionFilter:
    """Filter applied by a worker to each person and image."""

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(read_bytes(path))
            with regular_path(path.with_suffix(".npy")) as prints:
                self._gallery = HashIndex(np.load(prints, allow_pickle=False), content["distance"], at_once=1)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}). Fix: delete it and rerun the command.") from None
        self._keys: list[str] = content["keys"]
        self._people: dict[str, str] = content["people"]

    def check_person(self, group: str | None) -> None:
        """Raise ImageRejected if the person is excluded."""
        where = self._people.get(normalize_person(group)) if group is not None else None
        if where is not None:
            raise ImageRejected("excluded_person", f"also in {where}")

    def check_image(self, jpeg: bytes) -> None:
        """Raise ImageRejected if the image is excluded."""
        matches = self._gallery.query(np.array([perceptual_hash(jpeg)], HASH_DTYPE))
        if matches.match_index[0] >= 0:
            how = "the same pixels as" if matches.exact[0] else f"{matches.distance[0]} bits from"
            raise ImageRejected("excluded_image", f"{how} {self._keys[int(matches.match_index[0])]}")


def load_filter(path: Path) -> ExclusionFilter:
    """Return the filter of a build, loaded once per process."""
    return _load_filter(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load_filter(path: Path, written: int) -> ExclusionFilter:
    return ExclusionFilter(path)
