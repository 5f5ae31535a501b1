"""A real HTTP server over a folder, that counts what is asked of it and can misbehave."""

import contextlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path


@dataclass
class Served:
    """url: of the folder; asked: requests by name. fails: name -> how many of its first requests get a 503.

    cut: names that are sent only in half; stalled: the same, but the connection stays open until `over` is set.
    slow: seconds before each 64 KiB of a tar.
    """

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    fails: Counter[str] = field(default_factory=Counter)
    cut: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    slow: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)


class Handler(http.server.SimpleHTTPRequestHandler):
    """GET of the files of one folder."""

    def __init__(self, state: Served, *args: object, directory: str) -> None:
        self.state = state
        super().__init__(*args, directory=directory)

    def do_GET(self) -> None:
        name = Path(self.path.partition("?")[0]).name
        self.state.asked[name] += 1
        if self.state.asked[name] <= self.state.fails[name]:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = path.read_bytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        end = len(content) // 2 if name in self.state.cut | self.state.stalled else len(content)
        with contextlib.suppress(OSError):  # the client was killed
            for start in range(0, end, 65536):
                if name.endswith(".tar"):
                    time.sleep(self.state.slow)
                self.wfile.write(content[start : min(end, start + 65536)])
            if name in self.state.stalled:
                self.state.over.wait()

    def log_message(self, *_: object) -> None:
        """Tests have nothing to log."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve `folder` on 127.0.0.1 until the end of the block."""
    state = Served()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state, directory=str(folder)))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
