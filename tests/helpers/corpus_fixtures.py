"""Tiny corpora of drawn images for the tests of this folder, and the tools' command lines."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.cli_runner import run, tool
from shards.format.manifest import read_manifest

BUILD, VERIFY = tool("build_shards"), tool("verify_shards")


def picture(seed: int = 0, side: int = 48, mode: str = "RGB") -> Image.Image:
    """A smooth image with some texture, landscape, different for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0 : side + 8] / side
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(-2, 2, (3, 3))]
    noise = rng.normal(0, 3, (*x.shape, 3))
    return Image.fromarray((np.stack(waves, -1) * 80 + 128 + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_faces(folder: Path, count: int, classes: tuple[str, ...] = (), people: int = 0) -> Path:
    """`count` small JPEGs, named person_number.jpg, in class folders if there are any; every fourth one is gray."""
    for number in range(count):
        below = folder / classes[number % len(classes)] if classes else folder
        below.mkdir(parents=True, exist_ok=True)
        person = f"p{number % people:03d}" if people else "p"
        content = encoded(picture(number, mode="L" if number % 4 == 3 else "RGB"), quality=90)
        (below / f"{person}_{number:04d}.jpg").write_bytes(content)
    return folder


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of (name, content), as others write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rejected(shards: Path) -> dict[str, str]:
    """Source -> reason, from rejected.jsonl."""
    lines = (shards / "rejected.jsonl").read_text().splitlines()
    return {item["source"]: item["reason"] for item in map(json.loads, lines)}


def samples(shards: Path) -> list[dict]:
    """The json of every sample, with `cls` and the split of the shard it lies in, in manifest order."""
    found = []
    for info in read_manifest(shards).shards:
        with tarfile.open(shards / info.file) as tar:
            names = tar.getnames()
            for name in names:
                if name.endswith(".json"):
                    sample = json.load(tar.extractfile(name))
                    label = name.removesuffix("json") + "cls"
                    sample["cls"] = int(tar.extractfile(label).read()) if label in names else None
                    found.append(sample | {"shard": info.file})
    return found


def check_whole(shards: Path) -> None:
    """Entries are all accounted for, and verify_shards agrees."""
    manifest = read_manifest(shards)
    assert manifest.entries == manifest.samples + sum(manifest.rejected.values())
    assert len((shards / "rejected.jsonl").read_text().splitlines()) == sum(manifest.rejected.values())
    verified = run(*VERIFY, shards, "--workers", 1)
    assert verified.returncode == 0, verified.stdout + verified.stderr
