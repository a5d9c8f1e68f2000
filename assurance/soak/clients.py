"""Good clients of `assurance.soak`: every label that they get is checked.

Before its first query a client asks for the server's health, or reads the hello. After that it counts as accepted, and
a connection that ends without an answer is a fault of the server.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray

from assurance.soak.ledger import Answer, Gate, Ledger, LostError, Pool, Query, Refused, TurnedAwayError
from variegate.serve import socket_wire

PATH = "/v2/models/copy/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
WAIT_S = 60.0
Address = tuple[str, int]
_CHARGED = b"may have been charged"
_PAUSE_S = 0.1


class Client(Protocol):
    """One connection.

    Attributes:
        ahead: Queries that it sends before it reads the first answer.
    """

    ahead: int

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Asks; `LostError` or `OSError` where an answer is missing or of another query."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


class Reader:
    """A TCP connection and HTTP answers from it.

    Args:
        address: Of the server.
        source: Address of this end; the server sees each as a peer of its own.
        wait_s: Time for each read.
    """

    def __init__(self, address: Address, source: str, wait_s: float = WAIT_S) -> None:
        self.sock = socket.create_connection(address, timeout=wait_s, source_address=(source, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head in lower case, body; `LostError` where the connection ends."""
        while (end := self._data.find(b"\r\n\r\n")) < 0:
            self._more()
        head = self._data[:end].lower()
        length = int(header(head, b"content-length") or 0)
        while len(self._data) < end + 4 + length:
            self._more()
        body = self._data[end + 4 : end + 4 + length]
        self._data = self._data[end + 4 + length :]
        return int(head[9:12]), head, body

    def _more(self) -> None:
        part = self.sock.recv(1 << 20)
        if not part:
            raise LostError("the server closed")
        self._data += part

    @property
    def surplus(self) -> bool:
        """Whether bytes came that belong to no answer asked for."""
        return bool(self._data)

    def close(self) -> None:
        """Ends the connection."""
        self.sock.close()


def header(head: bytes, name: bytes) -> bytes | None:
    """The value of a header in a head in lower case, or None."""
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else None


def request(frames: NDArray[Any], name: str, *, binary: bool = True, encoding: str | None = None) -> bytes:
    """A whole HTTP request for labels.

    Args:
        frames: uint8 (N, *shape).
        name: Its id.
        binary: Whether frames and labels are binary.
        encoding: "gzip" for a compressed body.
    """
    tensor: dict[str, Any] = {"name": "image", "shape": list(frames.shape), "datatype": "UINT8"}
    raw = frames.tobytes() if binary else b""
    if binary:
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        tensor["data"] = frames.ravel().tolist()
    text = json.dumps({"id": name, "inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    body = text + raw if encoding is None else gzip.compress(text + raw, 1)
    split = f"Inference-Header-Content-Length: {len(text)}\r\n" if binary else ""
    packed = f"Content-Encoding: {encoding}\r\n" if encoding is not None else ""
    kind = "application/octet-stream" if binary else "application/json"
    lines = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{split}{packed}"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def reply(answer: tuple[int, bytes, bytes], name: str) -> Answer:
    """The labels of an answer; `LostError` when it is that of another query."""
    status, head, body = answer
    if status != 200:
        return Refused(status, _CHARGED in body, status in {429, 503} and header(head, b"retry-after") is not None)
    split = header(head, b"inference-header-content-length")
    end = len(body) if split is None else int(split)
    said = json.loads(body[:end])
    if said["id"] != name:
        raise LostError(f"the answer to another query: {said['id']}")
    if split is not None:
        return np.frombuffer(body[end:], "<i8")
    return np.array(said["outputs"][0]["data"], np.int64)


class Http:
    """HTTP on one kept connection, several queries ahead where asked for.

    Args:
        address: Of the server.
        source: Address of this end.
        ahead: Queries sent before the first answer is read.
        binary: Whether tensors are binary.
        encoding: "gzip" for compressed bodies.
    """

    def __init__(
        self, address: Address, source: str, *, ahead: int = 1, binary: bool = True, encoding: str | None = None
    ) -> None:
        self.ahead, self._binary, self._encoding = ahead, binary, encoding
        self._asked = 0
        try:
            self._reader = Reader(address, source)
        except OSError as error:
            raise TurnedAwayError from error
        try:
            self._reader.sock.sendall(LIVE)
            status, _, _ = self._reader.answer()
        except (OSError, LostError) as error:
            self.close()
            raise TurnedAwayError from error
        if status != 200:
            self.close()
            raise TurnedAwayError(status)

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """As `Client.ask`."""
        self.send(queries)
        return self.read()

    def read(self) -> list[Answer]:
        """The second half of `ask`."""
        found = [reply(self._reader.answer(), name) for name in self._names]
        if self._reader.surplus:
            raise LostError("more answers than queries")
        return found

    def send(self, queries: Sequence[Query]) -> None:
        """The first half of `ask`."""
        self._names = [f"{self._asked + i}" for i in range(len(queries))]
        self._asked += len(queries)
        self._reader.sock.sendall(
            b"".join(
                request(query.frames, name, binary=self._binary, encoding=self._encoding)
                for query, name in zip(queries, self._names, strict=True)
            )
        )

    def close(self) -> None:
        """Ends the connection."""
        self._reader.close()


class Triton:
    """NVIDIA's client, unchanged.

    Args:
        address: Of the server.
        binary: Whether tensors are binary.
    """

    ahead = 1

    def __init__(self, address: Address, *, binary: bool) -> None:
        self._binary, self._asked = binary, 0
        self._client = triton.InferenceServerClient(f"{address[0]}:{address[1]}", network_timeout=WAIT_S)
        try:
            live = self._client.is_server_live()
        except Exception as error:
            self.close()
            raise TurnedAwayError from error
        if not live:
            self.close()
            raise TurnedAwayError

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """As `Client.ask`."""
        return [self._one(query.frames) for query in queries]

    def _one(self, frames: NDArray[np.uint8]) -> Answer:
        self._asked += 1
        image = triton.InferInput("image", list(frames.shape), "UINT8")
        image.set_data_from_numpy(frames, binary_data=self._binary)
        label = triton.InferRequestedOutput("label", binary_data=self._binary)
        try:
            found = self._client.infer("copy", [image], outputs=[label], request_id=str(self._asked))
        except triton.InferenceServerException as error:
            status = error.status()
            if status is None or not status.isdigit():
                raise LostError(str(error)) from error
            return Refused(int(status), _CHARGED.decode() in error.message(), status in {"429", "503"})
        if found.get_response()["id"] != str(self._asked):
            raise LostError("the answer to another query")
        return np.asarray(found.as_numpy("label"), np.int64)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


class LabelSocket:
    """The label socket (docs/label-socket.md).

    Args:
        path: Of the socket.
    """

    ahead = 1

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self._asked = 0
        try:
            self.sock.connect(str(path))
            self.read(socket_wire.HELLO_BYTES)
        except (OSError, LostError) as error:
            self.close()
            raise TurnedAwayError from error

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """As `Client.ask`."""
        return [self._one(query) for query in queries]

    def send(self, query: Query) -> None:
        """The first half of `ask`."""
        self._asked += 1
        head = struct.pack("<4sIII", socket_wire.QUERY_MAGIC, self._asked, len(query.frames), 0)
        self.sock.sendall(head + query.frames.tobytes())

    def _one(self, query: Query) -> Answer:
        self.send(query)
        _, name, status, wait_ms, count, _ = struct.unpack("<4s5I", self.read(socket_wire.ANSWER_BYTES))
        if name != self._asked:
            raise LostError("the answer to another query")
        if status != socket_wire.OK:
            return Refused(status, status == 6, wait_ms != socket_wire.NO_RETRY)
        return np.frombuffer(self.read(4 * count), "<u4").astype(np.int64)

    def read(self, count: int) -> bytes:
        """As many bytes; `LostError` where the connection ends."""
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise LostError("the server closed")
            data += part
        return data

    def close(self) -> None:
        """Ends the connection."""
        self.sock.close()


def kinds(address: Address, path: Path) -> dict[str, Callable[[], Client]]:
    """Each kind of client, by name."""
    return {
        "triton": lambda: Triton(address, binary=True),
        "triton json": lambda: Triton(address, binary=False),
        "http": lambda: Http(address, "127.0.0.2"),
        "http pipelined": lambda: Http(address, "127.0.0.3", ahead=4),
        "http gzip json": lambda: Http(address, "127.0.0.4", binary=False, encoding="gzip"),
        "socket": lambda: LabelSocket(path),
    }


def live(kind: str, make: Callable[[], Client], pool: Pool, gate: Gate, ledger: Ledger, *, seed: int) -> None:
    """The life of a client: connects, asks some queries, leaves, again, until the gate ends."""
    rng = np.random.default_rng(seed)
    while True:
        try:
            with gate:
                _session(kind, make, pool, gate, ledger, rng=rng)
        except EOFError:
            return


def _session(
    kind: str, make: Callable[[], Client], pool: Pool, gate: Gate, ledger: Ledger, *, rng: np.random.Generator
) -> None:
    try:
        client = make()
    except TurnedAwayError:
        ledger.away()
        time.sleep(_PAUSE_S)
        return
    try:
        for _ in range(int(rng.integers(1, 200))):
            if not gate.open:
                return
            queries = [pool.draw(rng) for _ in range(client.ahead)]
            try:
                answers = client.ask(queries)
            except Exception as error:  # noqa: BLE001 - the clients of others raise what they like
                ledger.lost(kind, queries, error)
                return
            for query, answer in zip(queries, answers, strict=True):
                ledger.judge(kind, query, answer)
            if any(isinstance(answer, Refused) for answer in answers):
                time.sleep(_PAUSE_S)
    finally:
        client.close()
