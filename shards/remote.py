"""Files that lie elsewhere, by URL: which schemes are allowed, how they are read, listed and written.

All schemes but http(s) go through fsspec. http(s) is read with the standard library: fsspec's own needs aiohttp and
ends every download after five minutes.
"""

import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from shards.errors import UserError

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
HTTP = ("http", "https")
PUBLIC = ("file", "memory")  # they hold no secrets, and file names may have any character
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"\],]+")
TIMEOUT = 60.0  # seconds without a byte before a connection is given up
TRIES = 4
PAUSE = 1.0  # seconds before the second try; doubled before each further one
CHUNK = 1 << 20


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


def shown(url: str) -> str:
    """A URL for people, logs and files: without user, password and signature."""
    scheme, sign, rest = url.partition("://")
    if not sign or scheme.lower() in PUBLIC:
        return url
    place = rest.partition("?")[0]
    user, _, behind = place.partition("/")[0].rpartition("@")
    if user and (scheme.lower() in HTTP or ":" in user):  # in abfs://container@account nothing is secret
        place = behind + place[len(user) + 1 + len(behind) :]
    return f"{scheme}://{place}"


def redacted(value: Any) -> Any:
    """Plain values as they may be written down: every URL in every text as `shown` shows it."""
    if isinstance(value, dict):
        return {name: redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redacted, value))
    return URL.sub(lambda found: shown(found[0]), value) if isinstance(value, str) else value


def _without_secrets(text: str, url: str) -> str:
    """What a driver said of a URL, which may repeat parts of it."""
    place, _, query = url.partition("://")[2].partition("?")
    user = place.partition("/")[0].rpartition("@")[0] if shown(url) != url else ""
    for secret in filter(None, (query, user, user.partition(":")[2])):
        text = text.replace(secret, "...")
    return text


def open_url(url: str) -> IO[bytes]:
    """A stream of the file's bytes, to be closed by the caller.

    Raises:
        FileNotFoundError, PermissionError, and whatever else the driver raises (see `retried`).
    """
    check_url(url)
    if _scheme(url) in HTTP:
        return _open_http(url)
    system, path = _file_system(url)
    return cast(IO[bytes], system.open(path, "rb"))


def read_url(url: str) -> bytes:
    """The whole of a small file. Raises FileNotFoundError; UserError for all else, after some tries."""

    def read() -> bytes:
        with open_url(url) as file:
            return file.read()

    return retried(url, read)


def download(url: str, path: Path) -> None:
    """Copy a file to `path`. Raises like `read_url`."""

    def copy() -> None:
        with open_url(url) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)

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
                f"{shown(url)}: access is refused ({_without_secrets(str(error), url)}); check your credentials"
            ) from None
        except Exception as error:  # noqa: BLE001 - each driver has errors of its own
            if not left:
                said = _without_secrets(f"{type(error).__name__}: {error}", url)
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


def _open_http(url: str) -> IO[bytes]:
    try:
        return cast(IO[bytes], urllib.request.urlopen(url, timeout=TIMEOUT))  # the scheme has been checked
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise FileNotFoundError(f"{shown(url)}: {error}") from None
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise PermissionError(str(error)) from None
        raise
