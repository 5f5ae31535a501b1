"""Access files by URL: allowed schemes, reading, listing and writing.

All schemes except http(s), which `shards.io.web_client` handles, use fsspec.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from shards.errors import UserError
from shards.io.atomic import RefusedFileError, open_regular
from shards.io.web_client import chunks, open_web
from shards.redact import HTTP, redact_url, without_secrets

T = TypeVar("T")

# Scheme -> the package that fsspec needs ("" = none). A closed set: fsspec chains and commands (pipe:) are refused.
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
EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}  # package -> simfle's extra that installs it
TRIES = 4
PAUSE = 1.0  # seconds before the second try; doubled before each further one
CHUNK = 1 << 20
LARGEST = 1 << 27  # maximum bytes read into memory: a manifest of 100,000 shards has 20 MB


def is_url(place: str | Path) -> bool:
    """Return whether `place` is a URL (of any scheme) and not a path."""
    return "://" in str(place)


def check_url(url: str, *, write: bool = False) -> None:
    """Raise UserError if a URL cannot be read (or written), before any other work.

    Raises:
        UserError: If the scheme is not allowed, its driver is not installed, or http(s) is to be written.
    """
    scheme = _scheme(url)
    if scheme not in DRIVERS:
        raise UserError(f"{redact_url(url)}: scheme {scheme!r} is not allowed. Fix: use one of {', '.join(DRIVERS)}.")
    if write and scheme in HTTP:
        raise UserError(f"{redact_url(url)}: {scheme} is read-only. Fix: write to a bucket or a folder.")
    if scheme not in HTTP:
        _file_system(url)


def join(url: str, name: str) -> str:
    """Return the URL of `name` in the folder `url`; a query (for example a signature) stays at the end."""
    if _scheme(url) not in HTTP:
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def open_url(url: str) -> IO[bytes]:
    """Open a byte stream of a file; the caller closes it.

    Raises:
        FileNotFoundError, PermissionError, and errors of the driver (see `with_retries`).
    """
    check_url(url)
    if _scheme(url) in HTTP:
        return open_web(url)
    system, path = _file_system(url)
    if _scheme(url) == "file":
        try:
            return open_regular(path, "rb")
        except RefusedFileError as error:  # this is not a network error, so retries are useless
            raise UserError(f"{redact_url(url)}: {error.strerror}. Fix: pass a regular file.") from None
    return cast(IO[bytes], system.open(path, "rb"))


def read_url(url: str) -> bytes:
    """Read a small file. Raises FileNotFoundError; UserError for any other failure, after retries."""

    def read() -> bytes:
        content = bytearray()
        with open_url(url) as file:
            for chunk in chunks(file, CHUNK):
                content += chunk
                if len(content) > LARGEST:
                    raise UserError(
                        f"{redact_url(url)}: has more than {LARGEST >> 20} MiB, too much for this kind of file. "
                        "Fix: check the URL."
                    )
        return bytes(content)

    return with_retries(url, read)


def download(url: str, path: Path) -> None:
    """Copy a file to `path`. Raises like `read_url`."""

    def copy() -> None:
        with open_url(url) as source, path.open("wb", buffering=0) as target:
            for chunk in chunks(source, CHUNK):
                left = memoryview(chunk)
                try:
                    while left:
                        left = left[target.write(left) :]
                except OSError as error:  # not a network error
                    raise UserError(
                        f"{path}: cannot be written ({error.strerror}). Fix: free some space there."
                    ) from None

    with_retries(url, copy)


def upload(path: Path, url: str) -> None:
    """Copy a file to `url`. Raises UserError after retries."""
    check_url(url, write=True)
    system, target = _file_system(url)

    def copy() -> None:
        system.makedirs(system._parent(target), exist_ok=True)
        system.put_file(str(path), target)

    with_retries(url, copy)


def file_size(url: str) -> int | None:
    """Return the size of a file in bytes, or None if the file does not exist or its size is unknown (http)."""
    if _scheme(url) in HTTP:
        return None
    system, path = _file_system(url)
    system.invalidate_cache()
    try:
        return int(with_retries(url, lambda: system.info(path))["size"])
    except FileNotFoundError:
        return None


def is_directory(url: str) -> bool:
    """Return whether a URL is a folder (never for http). Raises UserError if the URL does not exist."""
    if _scheme(url) in HTTP:
        return False
    system, path = _file_system(url)
    try:
        return bool(with_retries(url, lambda: system.info(path))["type"] == "directory")
    except FileNotFoundError:
        raise UserError(f"{redact_url(url)}: does not exist. Fix: check the URL.") from None


def list_names(url: str) -> list[str] | None:
    """Return the file names in a folder, or None if the server cannot list them (http)."""
    if _scheme(url) in HTTP:
        return None
    system, path = _file_system(url)
    system.invalidate_cache()
    found = with_retries(url, lambda: system.ls(path, detail=True))
    return sorted(Path(item["name"]).name for item in found if item["type"] == "file")


def with_retries(url: str, action: Callable[[], T]) -> T:
    """Call `action` and retry errors that the network may have caused.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If access is refused, or `TRIES` attempts failed.
    """
    for left in range(TRIES - 1, -1, -1):
        try:
            return action()
        except (FileNotFoundError, UserError):
            raise
        except PermissionError as error:
            raise UserError(
                f"{redact_url(url)}: access is refused ({without_secrets(str(error), url)}). Fix: check your "
                "credentials."
            ) from None
        except Exception as error:  # noqa: BLE001 - each driver raises its own errors
            if not left:
                said = without_secrets(f"{type(error).__name__}: {error}", url)
                raise UserError(
                    f"{redact_url(url)}: failed {TRIES} times, last with {said}. Fix: check the network."
                ) from None
        time.sleep(PAUSE * 2 ** (TRIES - 1 - left))
    raise AssertionError("unreachable: the last try returns or raises")


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL and the path in it."""
    import fsspec  # imported lazily: only URLs need it

    scheme = _scheme(url)
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = DRIVERS.get(scheme)
        extra = f" (or '.[{EXTRAS[package]}]' in the checkout)" if package in EXTRAS else ""
        wish = f"pip install {package}{extra}" if package else "check the URL"
        raise UserError(f"{redact_url(url)}: {scheme} cannot be read here ({error}). Fix: {wish}") from None
    return system, path
