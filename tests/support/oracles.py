"""Servers that answer what a test wants, byte by byte, for clients that must bear it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Script = Callable[[socket.socket], None]
"""What is done with one accepted connection; it is closed afterwards."""


@contextmanager
def listening(script: Script, path: Path | None = None) -> Iterator[tuple[str, int]]:
    """A server on a free port, or on a Unix socket, that does `script` with each connection.

    Yields:
        Its host and port; an empty name for a Unix socket.
    """
    server = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(("127.0.0.1", 0) if path is None else str(path))
    server.listen(8)
    ended = threading.Event()
    open_ones: list[socket.socket] = []

    def serve() -> None:
        while not ended.is_set():
            try:
                client, _ = server.accept()
            except OSError:
                return
            open_ones.append(client)
            with client, contextlib.suppress(OSError):
                client.settimeout(10)
                script(client)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname() if path is None else ("", 0)
    finally:
        ended.set()
        # A connection of our own wakes `accept`.
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        for client in open_ones:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        thread.join(15)
        assert not thread.is_alive()


def dripping(client: socket.socket, data: bytes, pause_s: float = 0.05) -> None:
    """Sends a byte at a time."""
    for byte in data:
        client.sendall(bytes([byte]))
        time.sleep(pause_s)


def http_request(client: socket.socket) -> bytes:
    """Reads one request with its body; empty when the client left."""
    head = bytearray()
    while b"\r\n\r\n" not in head:
        part = client.recv(65536)
        if not part:
            return b""
        head += part
    start, _, body = bytes(head).partition(b"\r\n\r\n")
    lengths = [line for line in start.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].partition(b":")[2]) if lengths else 0
    while len(body) < wanted:
        body += client.recv(65536)
    return start


def http_answer(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """One answer."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
