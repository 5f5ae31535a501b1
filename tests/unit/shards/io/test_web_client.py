"""Servers without end, slow ones, redirects and passwords: each ends in a file or in one line that names the URL."""

import base64
import itertools
import os
import resource
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.scripted_server import Asked, Scripted, scripted, whole

from shards.errors import UserError
from shards.format.manifest import read_manifest
from shards.io import urls, web_client
from shards.io.urls import download, open_url, read_url
from shards.io.wait_status import current_wait
from shards.redact import redact_url

pytestmark = pytest.mark.slow

SECRET = "sig=deadbeef"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PAUSE", 0.01)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def refused(url: str) -> str:
    """The one line that reading a URL ends with; it names the URL and has nothing secret in it."""
    with pytest.raises(UserError) as told:
        read_url(url)
    line = str(told.value)
    assert line.startswith(redact_url(url) + ": ")
    assert len(line.splitlines()) == 1
    assert "deadbeef" not in line
    assert "hunter2" not in line
    return line


@pytest.mark.parametrize("how", ["no length", "chunked", "a length that is too large"])
def test_a_manifest_without_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "LARGEST", 4 << 20)
    block = bytes(1 << 18)
    head = {"chunked": b"Transfer-Encoding: chunked\r\n", "no length": b""}.get(
        how, b"Content-Length: 999999999999\r\n"
    )

    def answer(_: Scripted, __: Asked) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n" + head + b"\r\n"
        yield from itertools.repeat(b"%x\r\n%b\r\n" % (len(block), block) if how == "chunked" else block)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with scripted(answer) as server:
        with pytest.raises(UserError, match=r"/x/manifest\.json: has more than 4 MiB.* Fix: check the URL") as told:
            read_manifest(f"{server.url}/x?{SECRET}")
        assert len(server.asked) == 1  # not tried again
    assert "deadbeef" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("slow", ["status line", "headers", "body", "chunk sizes", "trailers"])
def test_a_server_that_sends_a_byte_now_and_then(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_client, "GRACE", 0.2)
    starts = {
        "status line": b"",
        "headers": b"HTTP/1.1 200 OK\r\nX: ",
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        "chunk sizes": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: ",
    }

    def answer(server: Scripted, _: Asked) -> Iterator[bytes]:
        yield starts[slow]
        while not server.over.wait(0.05):
            yield b"H" if slow == "status line" else b"0"

    with scripted(answer) as server:
        line = refused(f"{server.url}/x?{SECRET}")
        assert "the server is too slow" in line
        assert "Fix: try again later" in line
        assert len(server.asked) == 1


def test_a_reader_that_takes_its_time_is_not_a_slow_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_client, "GRACE", 0.05)

    def answer(server: Scripted, _: Asked) -> Iterator[bytes]:
        yield whole(bytes(3))
        server.over.wait(0)

    with scripted(answer) as server, open_url(server.url) as file:
        content = b""
        for _ in range(3):
            server.over.wait(0.1)
            content += file.read(1)
    assert content == bytes(3)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:1/x", "file:///etc/passwd", "data:,x", "FTP://h/x", "gopher://h"])
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_the_list_of_schemes_holds_for_redirects(code: int, target: str) -> None:
    with scripted(lambda *_: iter([whole(b"", f"Location: {target}", status=f"{code} Moved")])) as server:
        line = refused(f"{server.url}/x?{SECRET}")
        assert f"redirects to {target.partition(':')[0].lower()}:, but only http and https are followed" in line
        assert len(server.asked) == 1


def test_redirects_that_end_and_redirects_that_do_not() -> None:
    def answer(server: Scripted, asked: Asked) -> Iterator[bytes]:
        place = asked.path.partition("?")[0]
        ends = {"/loop": "/loop2", "/loop2": "/loop", "/1": "2?b=c", "/2": f"{server.url}/end", "/bad": "http://[x/"}
        if place == "/end":
            yield whole(b"there")
        elif place.startswith("/more"):
            yield whole(b"", f"Location: /more{place[5:]}1", status="302 Found")
        else:
            yield f"HTTP/1.1 302 Found\r\nLocation: {ends[place]}\r\n\r\n".encode()
            yield from itertools.repeat(bytes(1 << 16))  # what comes with a redirect may have no end

    with scripted(answer) as server:
        assert read_url(f"{server.url}/1") == b"there"
        server.asked.clear()
        assert "redirects without end, last to" in refused(f"{server.url}/loop?{SECRET}")
        assert len(server.asked) == 3  # the second time it has no signature, and is another URL
        assert "redirects without end, last to" in refused(f"{server.url}/more")
        assert len(server.asked) < 20
        assert "an invalid URL" in refused(f"{server.url}/bad")


def test_user_and_password_are_sent_to_their_own_server_only() -> None:
    def own(server: Scripted, asked: Asked) -> Iterator[bytes]:
        expected = "Basic " + base64.b64encode(b"al@ice:hunter2").decode()
        if asked.headers.get("Authorization") != expected:
            yield whole(b"", "WWW-Authenticate: Basic", status="401 \x1b[2JNo")
        elif asked.path == "/here":
            yield whole(b"", "Location: /x", status="302 Found")
        elif asked.path == "/away":
            yield whole(b"", f"Location: {other.url}/x", status="302 Found")
        else:
            yield whole(b"mine")

    with scripted(lambda *_: iter([whole(b"other")])) as other, scripted(own) as server:
        url = server.url.replace("http://", "http://al%40ice:hunter2@")
        assert read_url(f"{url}/x") == b"mine"
        assert read_url(f"{url}/here") == b"mine"
        assert read_url(f"{url}/away") == b"other"
        assert "Authorization" not in other.asked[0].headers
        assert "access is refused (HTTP 401 Unauthorized)" in refused(f"{server.url}/x?{SECRET}")
        assert "access is refused" in refused(url.replace("hunter2", "hunter22") + "/x")


@pytest.mark.parametrize(
    ("code", "words", "times"),
    [
        (400, "HTTP 400 Bad Request", 1),
        (418, "HTTP 418", 1),
        (503, "HTTP 503", urls.TRIES),
        (429, "429", urls.TRIES),
    ],
)
def test_only_what_may_pass_is_tried_again(code: int, words: str, times: int) -> None:
    with scripted(lambda *_: iter([whole(b"", status=f"{code} \x1b]0;title\x07")])) as server:
        line = refused(f"{server.url}/x?{SECRET}")
        assert words in line
        assert line.isprintable()
        assert len(server.asked) == times


@pytest.mark.parametrize("url", ["http://[::1/x", "http://h:port/x", "http://127.0.0.1:1/a b", "http:///x"])
def test_what_is_no_url_says_so(url: str) -> None:
    assert "valid URL" in refused(url) or "failed" in refused(url)


def test_a_file_that_ends_before_its_length_is_no_file(tmp_path: Path) -> None:
    with scripted(lambda *_: iter([whole(bytes(100))[:-1]])) as server:
        assert "IncompleteRead" in refused(f"{server.url}/x")
        with pytest.raises(UserError, match="IncompleteRead"):
            download(f"{server.url}/x", tmp_path / "x")
        assert len(server.asked) == 2 * urls.TRIES


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_matter_of_the_network() -> None:
    with (
        scripted(lambda *_: iter([whole(bytes(100))])) as server,
        pytest.raises(
            UserError, match=r"^/dev/full: cannot be written \(No space left on device\). Fix: free some space"
        ),
    ):
        download(f"{server.url}/x", Path("/dev/full"))


def test_what_a_reader_waits_for_can_be_asked(tmp_path: Path) -> None:
    go = threading.Event()

    def answer(*_: object) -> Iterator[bytes]:
        yield whole(bytes(100))[:-50]
        go.wait(10)
        yield bytes(50)

    with scripted(answer) as server:
        thread = threading.Thread(target=download, args=(f"{server.url}/x?{SECRET}", tmp_path / "x"))
        thread.start()
        while "bytes received" not in (told := current_wait(thread.ident)) or " 0 bytes" in told:
            os.sched_yield()
        go.set()
        thread.join()
    assert told.startswith(f"{server.url}/x, ")
    assert current_wait(thread.ident) == ""
    assert (tmp_path / "x").read_bytes() == bytes(100)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_https_is_read_under_the_same_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-keyout", "key", "-out", "cert"]
    subprocess.run([*words, "-addext", "subjectAltName=DNS:localhost"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    content = bytes(range(256)) * 2000

    def answer(server: Scripted, asked: Asked) -> Iterator[bytes]:
        yield whole(content)[: -1 if asked.path == "/slow" else None]
        while asked.path == "/slow" and not server.over.wait(0.05):
            yield b""

    with scripted(answer, context) as server:
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        assert "certificate" in refused(f"{url}/x")  # the certificate is self-signed
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        assert read_url(f"{url}/x") == content
        monkeypatch.setattr(web_client, "TIMEOUT", 0.2)
        assert "timed out" in refused(f"{url}/slow")
