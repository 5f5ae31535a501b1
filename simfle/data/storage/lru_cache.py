"""A bounded, thread-safe cache of recently used values."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Cache: `cache(key, make)` returns `make(key)`, cached for the `capacity` most recently used keys.

    The cache holds no reference to `make`: a method of the cache's owner would form a cycle that keeps files open. An
    evicted value lives as long as it is referenced (an array over a memory map). Two threads may compute the same value
    at the same time; both get the value that was stored first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def __call__(self, key: K, make: Callable[[K], V]) -> V:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        value = make(key)  # outside the lock: it may read a file
        with self._lock:
            value = self._held.setdefault(key, value)
            self._held.move_to_end(key)
            while len(self._held) > self.capacity:
                self._held.popitem(last=False)
        return value

    def resize(self, wanted: Callable[[K], bool]) -> None:
        """Evict the values of all other keys."""
        with self._lock:
            for key in [key for key in self._held if not wanted(key)]:
                del self._held[key]
