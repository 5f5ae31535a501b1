"""Tars with one sample each."""

import hashlib
import io
import tarfile
from pathlib import Path

from shards.format.manifest import ShardInfo


def make_tar(folder: Path, name: str, size: int = 100_000) -> ShardInfo:
    """A tar with one member of `size` bytes, different for each name."""
    folder.mkdir(exist_ok=True)
    content = hashlib.shake_256(name.encode()).digest(size)
    with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
        for extension, data in (("jpg", content), ("cls", b"0")):
            item = tarfile.TarInfo(f"{Path(name).stem}.{extension}")
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    whole = (folder / name).read_bytes()
    return ShardInfo(name, "train", 1, len(whole), hashlib.sha256(whole).hexdigest())


def make_tars(folder: Path, count: int, size: int = 100_000) -> list[ShardInfo]:
    return [make_tar(folder, f"train-{number:06d}.tar", size) for number in range(count)]
