"""Read http and https with the standard library; report slow, endless and redirecting servers.

fsspec's HTTP needs aiohttp and aborts every download after five minutes.
"""

import base64
import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import IO, Any, cast
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from shards.errors import UserError
from shards.io.wait_status import waiting_for
from shards.redact import HTTP, redact_url

TIMEOUT = 60.0  # seconds without a byte before a connection is aborted
# A file of n bytes may take at most GRACE + n / MIN_BYTES_PER_SECOND seconds, plus one TIMEOUT.
GRACE = 60.0  # seconds
MIN_BYTES_PER_SECOND = 10_000
REDIRECTS = 10
MAX_HEADER_LINES, MAX_HEADER_BYTES = 100, 1 << 16  # lines before and after a response, and bytes of each
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class SpeedLimit:
    """Bytes and seconds of one download; only the time spent waiting for the server counts."""

    def __init__(self, url: str) -> None:
        self.url, self.got, self.seconds = url, 0, 0.0

    def __str__(self) -> str:
        return f"{redact_url(self.url)}, {self.got:,} bytes received"

    def took(self, seconds: float, got: int) -> None:
        """Count one read. Raises UserError if the server is too slow."""
        self.seconds += seconds
        self.got += got
        if self.seconds > GRACE and self.got < (self.seconds - GRACE) * MIN_BYTES_PER_SECOND:
            raise UserError(
                f"{redact_url(self.url)}: the server is too slow ({self.got:,} bytes in {self.seconds:.0f} s). Fix: "
                "try again later, or copy the files to this machine by other means."
            )


class _Paced(io.RawIOBase):
    """Raw bytes of a connection, including headers."""

    def __init__(self, raw: Any, pace: SpeedLimit) -> None:
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        began = time.monotonic()
        with waiting_for(self._pace):
            got = self._raw.readinto(buffer) or 0
        if got:
            self._pace.took(time.monotonic() - began, got)
        return int(got)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Socket:
    """A socket whose files count their bytes and time."""

    def __init__(self, socket: Any, pace: SpeedLimit) -> None:
        self._socket, self._pace = socket, pace

    def makefile(self, *_: Any, **__: Any) -> IO[bytes]:
        return io.BufferedReader(_Paced(self._socket.makefile("rb", buffering=0), self._pace), 1 << 16)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Answer(http.client.HTTPResponse):
    """Response with limits that the standard library lacks."""

    def begin(self) -> None:
        """Read the status line and headers. Raises HTTPException for too many "100 Continue"."""
        self._begun = 0
        super().begin()

    def _read_status(self) -> tuple[str, int, str]:
        self._begun += 1
        if self._begun > MAX_HEADER_LINES:
            raise http.client.HTTPException(f"more than {MAX_HEADER_LINES} interim responses")
        return super()._read_status()  # type: ignore[misc]

    def _read_and_discard_trailer(self) -> None:
        """Skip the lines after the last chunk. The body is complete, so excess lines do no harm."""
        for _ in range(MAX_HEADER_LINES):
            if self.fp.readline(MAX_HEADER_BYTES + 1) in (b"\r\n", b"\n", b""):
                break


class _PacedConnection:
    """Mixin for both of the standard library's connections: its socket has the deadlines of `pace`."""

    def __init__(self, *words: Any, pace: SpeedLimit, **options: Any) -> None:
        super().__init__(*words, **options)
        self._pace = pace

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sock: Any = _Socket(self.sock, self._pace)


class _Connection(_PacedConnection, http.client.HTTPConnection):
    """An http connection."""

    response_class = _Answer


class _SecureConnection(_PacedConnection, http.client.HTTPSConnection):
    """An https connection."""

    response_class = _Answer


class _Handler(urllib.request.AbstractHTTPHandler):
    """Handler of both schemes, each with its connection class."""

    def __init__(self, pace: SpeedLimit) -> None:
        super().__init__()
        self._pace = pace

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(cast(Any, partial(_Connection, pace=self._pace)), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(cast(Any, partial(_SecureConnection, pace=self._pace)), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


def open_web(url: str) -> IO[bytes]:
    """Open a byte stream of a file; the caller closes it. read(n) returns n bytes except at the end of the file.

    Raises:
        FileNotFoundError: If the file does not exist.
        PermissionError: If access is refused.
        UserError: If the URL is invalid, the server is too slow, or a redirect is not supported. A retry cannot help.
        OSError, HTTPException: If another error occurs, which a retry may fix.
    """
    pace = SpeedLimit(url)
    opener = urllib.request.OpenerDirector()  # omits the default handlers of ftp, file and data
    for handler in (urllib.request.ProxyHandler(), _Handler(pace), urllib.request.HTTPErrorProcessor(), _Raises()):
        opener.add_handler(handler)
    at, seen = url, {url}
    while True:
        try:
            return _whole_file(url, opener.open(_request(at, url), timeout=TIMEOUT))
        except urllib.error.HTTPError as error:
            error.close()  # the body is not read, because it may be endless
            if not 300 <= error.code < 400 or not error.headers.get("Location"):
                raise _reason(url, error.code) from None
            at = _redirected(url, at, error.headers["Location"])
        except (http.client.InvalidURL, UnicodeError):
            raise UserError(f"{redact_url(url)}: not a valid URL. Fix: check its host and its characters.") from None
        if at in seen or len(seen) > REDIRECTS:
            raise UserError(
                f"{redact_url(url)}: the server redirects without end, last to {redact_url(at)}. Fix: check the URL, "
                "or pass the final URL."
            )
        seen.add(at)


def _whole_file(url: str, answer: Any) -> IO[bytes]:
    """Return the response as the file's byte stream. Raises UserError for partial or compressed content."""
    packed = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if answer.status == HTTPStatus.OK and packed == "identity":
        return cast(IO[bytes], answer)
    answer.close()
    if answer.status != HTTPStatus.OK:
        raise _reason(url, answer.status)
    raise UserError(
        f"{redact_url(url)}: the server sends unrequested compression. Fix: turn off Content-Encoding "
        "for these files on the server."
    )


class _Raises(urllib.request.BaseHandler):
    """Raise an HTTPError for every response that is not a success, redirects included."""

    def http_error_default(self, request: Any, answer: Any, code: int, reason: str, headers: Any) -> None:
        raise urllib.error.HTTPError(request.full_url, code, reason, headers, answer)


def _request(url: str, first: str) -> urllib.request.Request:
    """Return a GET request; user and password of the URL become a header that only their own server receives."""
    try:
        parts, origin = urlsplit(url), urlsplit(first)
        owner = parts if parts.username is not None else origin
        place = parts.netloc.rpartition("@")[2]
        same = (parts.scheme, place) == (origin.scheme, origin.netloc.rpartition("@")[2])
        request = urllib.request.Request(urlunsplit(parts._replace(netloc=place, fragment="")))
    except ValueError:
        raise UserError(f"{redact_url(first)}: not a valid URL. Fix: check its host and its characters.") from None
    if owner.username is not None and (same or owner is parts):
        words = f"{unquote(owner.username)}:{unquote(owner.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(words.encode()).decode()}")
    return request


def _redirected(url: str, at: str, location: str) -> str:
    """Return the target of a redirect. Raises UserError for another scheme."""
    # Headers are decoded as Latin-1; percent-encode non-ASCII bytes as received.
    location = quote(location, encoding="iso-8859-1", safe="".join(map(chr, range(33, 127))))
    try:
        target = urljoin(at, location)
        scheme = urlsplit(target).scheme
    except ValueError:
        raise UserError(f"{redact_url(url)}: the server redirects to an invalid URL. Fix: check the URL.") from None
    if scheme not in HTTP:
        raise UserError(
            f"{redact_url(url)}: the server redirects to {scheme or 'no'}:, but only http and https are followed. "
            "Fix: check the URL, or pass the final URL."
        )
    return target


def _reason(url: str, code: int) -> Exception:
    """Return the error for a status code, without text from the server."""
    known = {each.value: each.phrase for each in HTTPStatus}
    words = f"HTTP {code} {known.get(code, '')}".rstrip()
    if code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return FileNotFoundError(f"{redact_url(url)}: {words}")
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return PermissionError(words)
    if code in TRY_AGAIN:
        return ConnectionError(words)
    return UserError(f"{redact_url(url)}: the server returned {words}. Fix: check the URL.")


def chunks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes of a stream in chunks of `size`. Raises HTTPException if it ends before its announced length."""
    read: Callable[[int], bytes] = file.read
    while chunk := read(size):
        yield chunk
    if missing := getattr(file, "length", None):  # an HTTPResponse has the number of unread bytes
        raise http.client.IncompleteRead(b"", int(missing))
