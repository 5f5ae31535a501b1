"""Contact sheet of shards with one column per class."""

# T side of a tile
from pathlib import Path

import cv2
import numpy as np

from shards.io.atomic import write_atomic
from simfle.data.backends.jpeg_header import decode
from simfle.data.dataset import ShardCorpus

TILE, ROWS, COLUMNS, SEARCHED = 88, 4, 7, 2000


def write_contact_sheet(folder: Path, split: str, path: Path) -> tuple[str, ...]:
    """Write a PNG of some images of a split and return the names of its columns (empty if unlabeled)."""
    corpus = ShardCorpus([folder], [split])
    columns: dict[int | None, list[np.ndarray]] = {}
    named = corpus.labels[:COLUMNS]
    wanted = (len(named) or COLUMNS) * ROWS
    taken = 0
    for shard, count in enumerate(corpus.counts):
        for sample in range(min(count, SEARCHED)):
            label = corpus.label(shard, sample)
            place = label if named else taken % COLUMNS
            if (named and (label is None or label >= len(named))) or len(columns.get(place, ())) >= ROWS:
                continue
            image = decode(corpus.read_image(shard, sample))
            if image is not None:
                columns.setdefault(place, []).append(_tile(image))
                taken += 1
            if taken == wanted:
                break
    blank = np.full((TILE, TILE, 3), 255, np.uint8)
    places = range(len(named) or COLUMNS)
    strips = [
        np.concatenate([*columns.get(place, ()), *[blank] * (ROWS - len(columns.get(place, ())))]) for place in places
    ]
    done, data = cv2.imencode(".png", cv2.cvtColor(np.concatenate(strips, axis=1), cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data.tobytes())
    return named


def _tile(image: np.ndarray) -> np.ndarray:
    """Crop the largest central square, [T, T, 3]."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return cv2.resize(image[top : top + side, left : left + side], (TILE, TILE), interpolation=cv2.INTER_AREA)
