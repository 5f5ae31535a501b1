"""Detect changed shards during a run: read their manifests again at each checkpoint.

A thread reads the manifests, because a server may answer slowly. A person may have been removed: the run must not use
removed images from open files or from a cache for the rest of its epochs.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

from shards.format.manifest import NAME, Manifest, read_manifest
from simfle.data.storage.stores import LocalStore, RemoteStore, ShardStore
from simfle.errors import UserError

FINAL_CHECK_TIMEOUT = 10.0  # maximum seconds that the end of a run waits for the last check


class ShardWatch:
    """Watch of the shards: `check` starts a check, unless one is in progress; `reason` is empty until a check finds
    other shards.

    A manifest that cannot be read changes nothing: the run keeps its shards. A stream has no manifest.
    """

    def __init__(self, stores: Sequence[ShardStore]) -> None:
        self.reason = ""
        self._stores = tuple(stores)
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Read the manifests in the background."""
        if self._stores and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._work, name="lookout", daemon=True)
            self._thread.start()

    def final_check(self) -> str:
        """Check once more, wait briefly for the result, and return the reason."""
        self.check()
        if self._thread is not None:
            self._thread.join(FINAL_CHECK_TIMEOUT)
        return self.reason

    def _work(self) -> None:
        for place in self._stores:
            now = _manifest(place)
            if now is not None and now.shards != place.manifest.shards:
                self.reason = (
                    f"data.shards={place.name}: its {NAME} no longer lists the shards of this run's start, as after "
                    "simfle shards remove. Fix: start a new run with another train.run_dir; this run can resume only "
                    "with the original shards"
                )


def _manifest(place: ShardStore) -> Manifest | None:
    """Read the current manifest, or None if there is none, or it cannot be read."""
    where: str | Path | None = None
    if isinstance(place, RemoteStore):
        where = place.url
    elif isinstance(place, LocalStore) and place.indexed:
        where = place.path
    try:
        return read_manifest(where) if where is not None else None
    except (UserError, OSError):
        return None
