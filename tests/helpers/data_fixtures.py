"""Small shards for the tests of this folder, written member by member, of drawn images."""

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from shards.format.index import index_tar, write_index
from shards.format.manifest import FORMAT, Manifest, ShardInfo, write_manifest


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A drawn RGB image [height, width, 3] with smooth light, edges of all slants and some texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(-3, 3, (3, 3))]
    image = (np.stack(waves, -1) * 60 + 128).clip(0, 255).astype(np.uint8)
    for _ in range(6):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(2, width // 3 + 3)), int(rng.integers(2, height // 3 + 3)))
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        cv2.ellipse(image, center, axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
    noise = rng.normal(0, 4, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    """RGB [H, W, 3] uint8 -> JPEG."""
    done, content = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return content.tobytes()


def write_shards(folder: Path, shards: Sequence[tuple[str, Sequence[bytes]]]) -> Path:
    """Write (split, JPEGs) after (split, JPEGs) as shards with indexes and a manifest; labels alternate 0, 1."""
    folder.mkdir(parents=True, exist_ok=True)
    infos, count = [], 0
    for number, (split, images) in enumerate(shards):
        path = folder / f"{split}-{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for content in images:
                key = f"s{count:06d}"
                members = {"jpg": content, "cls": str(count % 2).encode(), "json": json.dumps({"key": key}).encode()}
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count += 1
        write_index(path.with_suffix(".idx"), index_tar(path))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        infos.append(ShardInfo(path.name, split, len(images), path.stat().st_size, digest))
    labels = ("calm", "glad")
    write_manifest(folder, Manifest(FORMAT, "drawn", "none", labels, count, {}, tuple(infos), {}))
    return folder


def drawn_corpus(folder: Path, counts: Sequence[int] = (13, 9, 4, 11), side: int = 64) -> Path:
    """Shards of small drawn faces; the third shard is of split "test", the others of "train"."""
    images = [jpeg(picture(i, side + i % 7, side + i % 5)) for i in range(sum(counts))]
    starts = np.cumsum([0, *counts])
    shards = [("test" if i == 2 else "train", images[a:b]) for i, (a, b) in enumerate(itertools.pairwise(starts))]
    return write_shards(folder, shards)
