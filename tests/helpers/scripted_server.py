"""A real HTTP server that answers as a function tells, down to the bytes on the wire."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Asked:
    """One request: its first line and its headers."""

    line: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]


@dataclass
class Scripted:
    """url: of the server; asked: what has been, in order; over: set at the end of the block."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def scripted(
    answer: Callable[[Scripted, Asked], Iterator[bytes]], tls: ssl.SSLContext | None = None
) -> Iterator[Scripted]:
    """Serve on 127.0.0.1, under TLS where asked: each connection gets the bytes of one answer, and is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    state = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True)
            first, *lines = connection.makefile("rb").peek(1).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines if ": " in line)
            state.asked.append(Asked(first, headers))
            for part in answer(state, state.asked[-1]):
                if state.over.is_set():
                    return
                connection.sendall(part)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield state
    finally:
        state.over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join(10)


def whole(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An answer of known length."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers])
    return head.encode("latin-1") + b"\r\n\r\n" + content
