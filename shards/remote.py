"""Files that lie elsewhere, by URL: which schemes are allowed, how they are read, listed and written.

All schemes but http(s) go through fsspec; these are in `shards.web`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from shards.errors import UserError
from shards.files import RefusedFileError, open_regular
from shards.redact import HTTP, shown, without_secrets
from shards.web import chunks, open_web

T = TypeVar("T")

# Scheme -> the package that fsspec needs for it; "": none. A closed set: no chains of fsspec, no commands (pipe:).
DRIVERS = {
    "file": "",
    "memory": "",
    "http": "",
    "https": "",
    "s3": "s3fs",
    "gs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
}
EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}  # our extra that brings a driver
TRIES = 4
PAUSE = 1.0  # seconds before the second try; doubled before each further one
CHUNK = 1 << 20
LARGEST = 1 << 27  # bytes of a file that is read into memory: the manifest of 100,000 shards has 20 MB


def is_url(place: str | Path) -> bool:
    """Whether `place` is a URL, of an allowed scheme or not, rather than a path."""
    return "://" in str(place)


def check_url(url: str, *, write: bool = False) -> None:
    """Refuse what cannot be read (or written) before anything else is done.

    Raises:
        UserError: a scheme that is not allowed, or whose driver is not installed; http(s) to write to.
    """
    scheme = _scheme(url)
    if scheme not in DRIVERS:
        raise UserError(f"{shown(url)}: {scheme!r} is not an allowed scheme; known are {', '.join(DRIVERS)}")
    if write and scheme in HTTP:
        raise UserError(f"{shown(url)}: {scheme} can only be read; write to a bucket or a folder")
    if scheme not in HTTP:
        _file_system(url)


def join(url: str, name: str) -> str:
    """The URL of `name` in the folder `url`; what stands after ? (a signature, say) stays at the end."""
    if _scheme(url) not in HTTP:
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def open_url(url: str) -> IO[bytes]:
    """A stream of the file's bytes, to be closed by the caller.

    Raises:
        FileNotFoundError, PermissionError, and whatever else the driver raises (see `retried`).
    """
    check_url(url)
    if _scheme(url) in HTTP:
        return open_web(url)
    system, path = _file_system(url)
    if _scheme(url) == "file":
        try:
            return open_regular(path, "rb")
        except RefusedFileError as error:  # not the network's fault: no use in further tries
            raise UserError(f"{shown(url)}: {error.strerror}. Fix: name a regular file") from None
    return cast(IO[bytes], system.open(path, "rb"))


def read_url(url: str) -> bytes:
    """The whole of a small file. Raises FileNotFoundError; UserError for all else, after some tries."""

    def read() -> bytes:
        content = bytearray()
        with open_url(url) as file:
            for chunk in chunks(file, CHUNK):
                content += chunk
                if len(content) > LARGEST:
                    raise UserError(
                        f"{shown(url)}: it has more than {LARGEST >> 20} MiB, which no file of this kind has. "
                        "Fix: check the URL"
                    )
        return bytes(content)

    return retried(url, read)


def download(url: str, path: Path) -> None:
    """Copy a file to `path`. Raises like `read_url`."""

    def copy() -> None:
        with open_url(url) as source, path.open("wb", buffering=0) as target:
            for chunk in chunks(source, CHUNK):
                left = memoryview(chunk)
                try:
                    while left:
                        left = left[target.write(left) :]
                except OSError as error:  # no matter of the network
                    raise UserError(f"{path} cannot be written: {error.strerror}. Fix: make room there") from None

    retried(url, copy)


def upload(path: Path, url: str) -> None:
    """Copy a file to `url`. Raises UserError, after some tries."""
    check_url(url, write=True)
    system, target = _file_system(url)

    def copy() -> None:
        system.makedirs(system._parent(target), exist_ok=True)
        system.put_file(str(path), target)

    retried(url, copy)


def size_of(url: str) -> int | None:
    """Bytes of a file; None where there is none, or where nobody can say (http)."""
    if _scheme(url) in HTTP:
        return None
    system, path = _file_system(url)
    system.invalidate_cache()
    try:
        return int(retried(url, lambda: system.info(path))["size"])
    except FileNotFoundError:
        return None


def is_folder(url: str) -> bool:
    """Whether a URL is that of a folder; of http(s) none is. Raises UserError where nothing is there."""
    if _scheme(url) in HTTP:
        return False
    system, path = _file_system(url)
    try:
        return bool(retried(url, lambda: system.info(path))["type"] == "directory")
    except FileNotFoundError:
        raise UserError(f"there is no {shown(url)}") from None


def names_in(url: str) -> list[str] | None:
    """Names of the files in a folder; None where they cannot be listed (http)."""
    if _scheme(url) in HTTP:
        return None
    system, path = _file_system(url)
    system.invalidate_cache()
    found = retried(url, lambda: system.ls(path, detail=True))
    return sorted(Path(item["name"]).name for item in found if item["type"] == "file")


def retried(url: str, action: Callable[[], T]) -> T:
    """`action()`, tried again where the network may be at fault.

    Raises:
        FileNotFoundError: it is not there, which is an answer. UserError: not allowed, or failed `TRIES` times.
    """
    for left in range(TRIES - 1, -1, -1):
        try:
            return action()
        except (FileNotFoundError, UserError):
            raise
        except PermissionError as error:
            raise UserError(
                f"{shown(url)}: access is refused ({without_secrets(str(error), url)}); check your credentials"
            ) from None
        except Exception as error:  # noqa: BLE001 - each driver has errors of its own
            if not left:
                said = without_secrets(f"{type(error).__name__}: {error}", url)
                raise UserError(f"{shown(url)}: failed {TRIES} times, at last with {said}; check the network") from None
        time.sleep(PAUSE * 2 ** (TRIES - 1 - left))
    raise AssertionError("the last try has returned or raised")


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    import fsspec  # imported here: only URLs need it

    scheme = _scheme(url)
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = DRIVERS.get(scheme)
        extra = f" (or '.[{EXTRAS[package]}]' in the checkout)" if package in EXTRAS else ""
        wish = f"pip install {package}{extra}" if package else "check the URL"
        raise UserError(f"{shown(url)}: {scheme} cannot be read here ({error}); {wish}") from None
    return system, path
