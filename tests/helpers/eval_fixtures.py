"""Images, shards and names for the evaluation tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from shards.format.index import write_index
from shards.format.manifest import ShardInfo
from shards.format.tar_writer import TarShardWriter

CLASSES = ("circle", "cross", "stripes")
MODEL = "test_resnet"  # timm's smallest
MakeShards = Callable[..., Path]
MakeBackbone = Callable[..., Path]


def picture(label: int, number: int, size: int = 48) -> bytes:
    """Draw a shape on a background of random colors: its mean color does not reveal its class."""
    rng = np.random.default_rng([label, number])
    image = np.full((size, size + 16, 3), rng.integers(0, 256, 3), np.uint8)
    ink = tuple(int(value) for value in rng.integers(0, 256, 3))
    x, y, r = (int(value) for value in rng.integers([20, 16, 10], [44, 32, 15]))
    if label == 0:
        cv2.circle(image, (x, y), r, ink, 3)
    elif label == 1:
        cv2.line(image, (x - r, y - r), (x + r, y + r), ink, 3)
        cv2.line(image, (x - r, y + r), (x + r, y - r), ink, 3)
    else:
        image[::6] = ink
        image[1::6] = ink
    return simplejpeg.encode_jpeg(image, quality=95, colorspace="RGB")


def about(split: str, label: int, number: int, size: int) -> dict[str, Any]:
    """Return the metadata of an image: two images per person, four landmarks, votes, valence and arousal."""
    rng = np.random.default_rng([label, number, 1])
    x, y = rng.integers(12, 20, 2).tolist()
    votes = dict.fromkeys(CLASSES, 1) | {CLASSES[label]: 8, "unknown": 1}
    return {
        "group": f"{split}-{label}-{number // 2}",
        "width": size + 16,
        "height": size,
        "landmarks": [[x, y], [x + 20, y], [x + 10, y + 8], [x + 10, y + 20]],
        "extras": {"votes": votes, "valence": label - 1.0, "arousal": round(0.1 * label - 0.2, 3)},
    }


def write_shard(folder: Path, split: str, start: int, samples: list, labeled: bool, size: int) -> ShardInfo:
    tar = folder / f"{split}-{start:06d}.tar"
    shard = TarShardWriter(tar)
    for label, number in samples:
        offset = 1000 * (split != "train") + 100 * label  # different people and images in each split and class
        members = {"jpg": picture(int(label), offset + number, size)}
        if labeled:
            members["cls"] = str(label).encode()
        members["json"] = json.dumps(about(split, int(label), number, size)).encode()
        shard.add(f"{split}-{label}-{number}", members)
    written = shard.finish()
    write_index(tar.with_suffix(".idx"), written.index)
    return ShardInfo(tar.name, split, len(samples), written.bytes, written.sha256)
