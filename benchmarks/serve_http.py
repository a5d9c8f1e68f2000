"""HTTP in front of a copy, and the same server with a constant answer: the parts that `benchmarks.serve` times.

    python -m benchmarks.serve_http constant                 # prints its port, serves until stdin ends
    python -m benchmarks.serve_http device FOLDER [--in-process] [--socket PATH]

The baseline is a bare server in the manner of Triton: unchanged uvicorn with the same parser, and an app that reads the
request's body and answers with fixed labels. The additional time of a device's server is parsing, limits, fairness, the
change of thread and the enclave itself. Every server is a process of its own; clients keep their connection.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from uvicorn.config import Config
from uvicorn.server import Server

from variegate.device_sim.device import Device
from variegate.device_sim.hosting import host_of
from variegate.serve import oip, socket_wire
from variegate.serve.limits import ServeLimits
from variegate.serve.server import ServeOptions, Service

PATH = "/v2/models/copy/infer"
_WAIT_S = 60.0
_Message = MutableMapping[str, Any]


def constant_app(
    batch: int = 1,
) -> Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]]:
    """The baseline: reads the body, answers `batch` labels that are always 0.

    Args:
        batch: Labels in the answer.

    Returns:
        An ASGI application.
    """
    labels = np.zeros(batch, np.int64)
    body, split = oip.infer_reply(labels, oip.InferRequest(labels, None, binary=True), "1")
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(len(body)).encode()),
        (b"inference-header-content-length", str(split).encode()),
    ]

    async def app(
        scope: _Message, receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
    ) -> None:
        assert scope["type"] == "http"
        while (await receive()).get("more_body", False):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def binary_request(frames: NDArray[Any]) -> bytes:
    """A whole HTTP request with binary tensors, labels wanted as binary data, too.

    Args:
        frames: (N, *shape), uint8 or float32.
    """
    raw = frames.tobytes()
    datatype = "UINT8" if frames.dtype == np.uint8 else "FP32"
    tensor = {
        "name": "image",
        "shape": list(frames.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lines = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + len(raw)}\r\n\r\n"
    )
    return lines.encode() + head + raw


class HttpProbe:
    """A client on one kept connection that sends the same request again and again.

    Args:
        port: Of the server on this machine.
        request: The whole request.
    """

    def __init__(self, port: int, request: bytes) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=_WAIT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request

    def ask(self) -> NDArray[np.int64]:
        """One request; its labels, int64 (N,)."""
        self._sock.sendall(self._request)
        data = self._sock.recv(1 << 20)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head = data[:end].lower()
        assert head.startswith(b"http/1.1 200"), data
        length = _header(head, b"\r\ncontent-length:")
        while len(data) < end + 4 + length:
            data += self._more()
        start = end + 4 + _header(head, b"\r\ninference-header-content-length:")
        return np.frombuffer(data, "<i8", offset=start)

    def _more(self) -> bytes:
        part = self._sock.recv(1 << 20)
        assert part
        return part

    def close(self) -> None:
        """Ends the connection."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SocketProbe(HttpProbe):
    """The same on the label socket.

    Args:
        path: Of the socket.
        frames: (N, *shape).
    """

    def __init__(self, path: Path, frames: NDArray[Any]) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(_WAIT_S)
        self._sock.connect(str(path))
        self._read(socket_wire.HELLO_BYTES)
        self._request = struct.pack("<4sIII", socket_wire.QUERY_MAGIC, 1, len(frames), 0) + frames.tobytes()
        self._bytes = socket_wire.ANSWER_BYTES + 4 * len(frames)

    def ask(self) -> NDArray[np.int64]:
        """One query; its labels, int64 (N,)."""
        self._sock.sendall(self._request)
        return np.frombuffer(self._read(self._bytes), "<u4", offset=socket_wire.ANSWER_BYTES).astype(np.int64)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._more()
        return data


@contextmanager
def server(*arguments: str | Path) -> Iterator[int]:
    """One of this module's servers in a process of its own; its port."""
    command = [sys.executable, "-m", "benchmarks.serve_http", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(_WAIT_S)
        process.stdout.close()


def timed(asks: dict[str, Callable[[], object]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of each call, alternating, float64 (rounds,) each."""
    out: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(rounds):
        for name, ask in asks.items():
            began = time.perf_counter()
            ask()
            out[name].append(time.perf_counter() - began)
    return {name: np.array(found) for name, found in out.items()}


def _header(head: bytes, name: bytes) -> int:
    return int(head[head.index(name) + len(name) :].partition(b"\r\n")[0])


def _serve_constant(batch: int, parser: str) -> None:
    config = Config(
        constant_app(batch),
        port=0,
        http=parser,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    with socket.create_server(("127.0.0.1", 0)) as sock:
        # asyncio sets this on sockets that it made itself; without it the answer's second write waits 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = Server(config)
        print(sock.getsockname()[1], flush=True)

        def stop() -> None:
            sys.stdin.read()
            found.should_exit = True

        threading.Thread(target=stop, daemon=True).start()
        found.run(sockets=[sock])


def _serve_device(folder: Path, path: Path | None, *, in_process: bool) -> None:
    with Device.open(folder, host=None if in_process else host_of(folder)) as device:

        def started(service: Service) -> None:
            def stop() -> None:
                sys.stdin.read()
                service.stop()

            threading.Thread(target=stop, daemon=True).start()
            print((service.address or ("", 0))[1], flush=True)

        limits = ServeLimits(keep_alive_s=3600, head_s=3600)  # clients connect early and ask late
        Service(device.boot(), ServeOptions(port=0, socket=path, limits=limits), on_start=started).run()


def main() -> None:
    """Runs one server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    constant = kinds.add_parser("constant")
    constant.add_argument("--batch", type=int, default=1)
    constant.add_argument("--parser", choices=("httptools", "h11"), default="httptools")
    device = kinds.add_parser("device")
    device.add_argument("folder", type=Path)
    device.add_argument("--socket", type=Path)
    device.add_argument("--in-process", action="store_true")
    args = parser.parse_args()
    if args.kind == "constant":
        _serve_constant(args.batch, args.parser)
    else:
        _serve_device(args.folder, args.socket, in_process=args.in_process)


if __name__ == "__main__":
    main()
