"""Summarize shards: counts, sizes, people, and a contact sheet of sample images."""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.errors import UserError
from shards.format.external_tars import IMAGES, image_extension
from shards.format.manifest import Manifest, ShardInfo, read_manifest
from shards.format.samples import StoredSample, read_samples, select_shards
from shards.format.shard_reader import check_sizes, shard_index
from shards.imaging.codec import ImageRejected, decode_rgb
from shards.rules import keyed_hash

GAP, LINE = 6, 13  # pixels: gap between images, height of a text line
COLUMNS = 8
MAX_CELLS = 10_000
BACKGROUND, INK, PALE = (250, 250, 250), (20, 20, 20), (110, 110, 110)

SampleRef = tuple[ShardInfo, int]  # shard, position in it


@dataclass
class ShardSummary:
    """Summary of the chosen shards.

    counts: (split, label) -> samples, label "" for samples without one; sides: width and height [n, 2] of the images in
    pixels, 0 if unknown; bytes: size of each image file [n]; people: split -> number of groups; sheet: samples drawn by
    a keyed hash, in the order of the shards.
    """

    manifest: Manifest
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    sides: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    people: dict[str, int] = field(default_factory=dict)
    sheet: list[SampleRef] = field(default_factory=list)


def summarize(
    folder: Path, splits: Sequence[str], samples: int, seed: int, progress: Callable[[str, int, int], None]
) -> ShardSummary:
    """Read the labels, json and sizes of all samples and draw `faces` of them for a contact sheet.

    Raises:
        UserError: If the shards or a split do not exist, or the shards do not match the manifest.
    """
    if not 0 <= samples <= MAX_CELLS:
        raise UserError(f"--samples={samples}: out of range. Fix: pass 0 to {MAX_CELLS}.")
    manifest = read_manifest(folder)
    shards = select_shards(manifest, splits, "--split")
    check_sizes(folder, shards)
    total = sum(info.samples for info in shards)
    found = ShardSummary(manifest, sides=np.zeros((total, 2), np.int64), bytes=np.zeros(total, np.int64))
    people: dict[str, set[bytes]] = {}
    chosen: list[tuple[int, int, int]] = []  # heap of (hash, shard, position), largest hash first
    number = 0
    for place, info in enumerate(shards):
        found.bytes[number : number + info.samples] = _image_sizes(folder, info)
        for position, sample in enumerate(read_samples(folder, info, only=("cls", "json"))):
            known = sample.metadata
            found.counts[info.split, sample.label(manifest.labels)] += 1
            found.sides[number] = [_number(known.get(name)) for name in ("width", "height")]
            if known.get("group") is not None:
                people.setdefault(info.split, set()).add(keyed_hash(str(known["group"]), "look")[:8])
            draw = int.from_bytes(keyed_hash(sample.key, f"look {seed}")[:8], "big")
            (heapq.heappush if len(chosen) < samples else heapq.heappushpop)(chosen, (-draw, place, position))
            number += 1
        progress("looking", number, total)
    found.people = {split: len(groups) for split, groups in people.items()}
    found.sheet = [(shards[place], position) for _, place, position in sorted(chosen, key=lambda item: item[1:])]
    return found


def _image_sizes(folder: Path, info: ShardInfo) -> NDArray[np.int64]:
    index = shard_index(folder, info)
    sizes = np.zeros(len(index), np.int64)
    for name in reversed(IMAGES):  # the first one of a sample wins
        for extension in (extension for extension in index.extensions if extension.lower() == name):
            column = index.column(extension)[1]
            sizes = np.where(column >= 0, column, sizes)
    return sizes


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def draw_contact_sheet(folder: Path, summary: ShardSummary, side: int, *, keys: bool = True) -> Image.Image:
    """Draw the chosen images in squares of `side` pixels, each with its label below it.

    keys: also write split and key, which may contain the name of a person.
    """
    if not summary.sheet:
        raise UserError(f"{folder}: contains no samples to show. Fix: choose other shards.")
    columns = min(COLUMNS, len(summary.sheet))
    rows = -(-len(summary.sheet) // columns)
    width, height = side + GAP, side + GAP + (1 + keys) * LINE
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 2)
    for number, (info, position) in enumerate(summary.sheet):
        sample = next(read_samples(folder, info, [position]))
        row, column = divmod(number, columns)
        left, top = GAP + column * width, GAP + row * height
        image = _open(folder / info.file, sample)
        image.thumbnail((side, side))
        sheet.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
        label = sample.label(summary.manifest.labels) or "-"
        pen.text((left, top + side), _fit(pen, font, label, side), INK, font)
        if keys:
            pen.text((left, top + side + LINE), _fit(pen, font, f"{info.split} {sample.key}", side), PALE, font)
    return sheet


def _open(tar: Path, sample: StoredSample) -> Image.Image:
    try:
        return Image.fromarray(decode_rgb(sample.members.get(image_extension(sample.members) or "", b"")))
    except ImageRejected as error:
        raise UserError(
            f"{tar}: {sample.key} cannot be decoded ({error}). Fix: run simfle shards verify on these shards."
        ) from None


def _fit(pen: ImageDraw.ImageDraw, font: Any, text: str, width: int) -> str:
    """Truncate a text that is wider than its image."""
    while len(text) > 1 and pen.textlength(text, font) > width:
        text = text[:-2] + "\u2026"
    return text
