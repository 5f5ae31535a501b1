"""Upload a complete folder of shards to a URL; skip files that exist there and write the manifest last."""

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import UserError
from shards.format.manifest import NAME, REJECTED, Manifest, index_name, parse_manifest, read_manifest
from shards.io.atomic import open_regular, read_bytes, write_atomic
from shards.io.hashing import hash_file
from shards.io.urls import check_url, file_size, join, list_names, read_url, upload
from shards.redact import redact_url

AT_ONCE = 4


def manifest_at(url: str) -> Manifest | None:
    """Return the manifest of the shards at a writable URL, or None if the URL has no manifest.

    Raises:
        UserError: If the URL is not writable or not readable, or the manifest is corrupt.
    """
    check_url(url, write=True)
    place = join(url, NAME)
    try:
        return parse_manifest(read_url(place), redact_url(place))
    except FileNotFoundError:
        return None


@dataclass
class Upload:
    """Upload of `folder` to `url`. record: file that stores size and sha256 of each uploaded file."""

    folder: Path
    url: str
    record: Path
    skipped: int = 0
    _done: dict[str, list[int | str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Upload all files, the manifest last. `progress` receives the number of files done and of all files.

        Raises:
            UserError: If the URL holds other files or the manifest of another build, or an upload failed permanently. A
                rerun skips files that are already uploaded.
        """
        manifest = read_manifest(self.folder)
        hashes = {shard.file: shard.sha256 for shard in manifest.shards}
        names = [name for file in hashes for name in (file, index_name(file))] + [REJECTED]
        self._refuse_others({*names, NAME})
        if self.record.exists():
            self._done = json.loads(read_bytes(self.record))

        def one(name: str) -> None:
            self._put(name, hashes.get(name))
            with self._lock:
                self._count += 1
                progress(self._count, len(names) + 1)

        self._count = 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for future in [pool.submit(one, name) for name in names]:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        upload(self.folder / NAME, join(self.url, NAME))
        progress(len(names) + 1, len(names) + 1)

    def _refuse_others(self, names: set[str]) -> None:
        try:
            there = list_names(self.url) or []
        except FileNotFoundError:
            return
        others = [name for name in there if name not in names]
        if others:
            raise UserError(
                f"{redact_url(self.url)}: contains other files ({others[0]}, ...). Fix: choose another output."
            )

    def _put(self, name: str, sha256: str | None) -> None:
        path, url = self.folder / name, join(self.url, name)
        with open_regular(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
        known: list[int | str] = [size, sha256 or hash_file(path)]
        if self._done.get(name) == known and file_size(url) == known[0]:
            self.skipped += 1
            return
        upload(path, url)
        there = file_size(url)
        if there != known[0]:
            raise UserError(f"{redact_url(url)} has {there} bytes, not {known[0]}. Fix: rerun the command.")
        with self._lock:
            self._done[name] = known
            write_atomic(self.record, json.dumps(self._done).encode())
