"""Hostile clients of `assurance.soak`: slow, oversized, malformed, many, and gone before their answer.

An attack returns the status of each answer, 0 if the connection ended without one, and names the statuses that may
occur. A 200 for an invalid query, or any other status, counts as unexpected. The attacks with valid queries (`burst`,
`sybil queries`) have their labels checked like those of good clients.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assurance.soak.clients import (
    LIVE,
    Address,
    Http,
    LabelSocket,
    Reader,
    request,
)
from assurance.soak.ledger import Gate, Ledger, LostError, Pool, TurnedAwayError
from assurance.soak.refusals import AWAY, FRAME, GONE, LATE, post, refusals
from variegate.serve import socket_wire

_SOURCE = "127.0.0.66"
_CROWD, _SYBILS, _BURST = 60, 160, 24
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Target:
    """The server under attack.

    Attributes:
        address: Of HTTP.
        path: Of the label socket.
        pool: Frames with reference labels.
        ledger: Judges answers to queries in order.
        rng: Random numbers.
        slow_s: How long a slow client may be held, bounds of the server and some room.
    """

    address: Address
    path: Path
    pool: Pool
    ledger: Ledger
    rng: np.random.Generator
    slow_s: float


@dataclass(frozen=True)
class Attack:
    """One kind of attack.

    Attributes:
        run: Does it.
        allowed: Statuses that may come.
        leaves: Whether queries in order are left unanswered: they may be charged.
    """

    run: Callable[[Target], Sequence[int]]
    allowed: frozenset[int]
    leaves: bool = False


def live(attacks: dict[str, Attack], target: Target, gate: Gate) -> None:
    """The life of an attacker: one attack after another, in random order, until the gate ends."""
    names: list[str] = []
    while True:
        if not names:
            names = list(target.rng.permutation(list(attacks)))
        name = names.pop()
        try:
            with gate:
                attack = attacks[name]
                if attack.leaves and not gate.leaving:
                    continue
                target.ledger.attacked(name, attack.run(target), attack.allowed)
        except EOFError:
            return
        except (OSError, TurnedAwayError):
            target.ledger.attacked(name, [GONE], attack.allowed | {GONE})
        except Exception as error:  # noqa: BLE001 - a thread that dies unseen would attack no more
            target.ledger.note(f"attack {name} failed: {type(error).__name__}: {error}"[:200])


def _once(data: bytes) -> Callable[[Target], list[int]]:
    def run(target: Target) -> list[int]:
        with contextlib.closing(Reader(target.address, _SOURCE, target.slow_s)) as reader:
            return _answers(reader, data, 1)

    return run


def _answers(reader: Reader, data: bytes, count: int) -> list[int]:
    """Sends and reads up to `count` answers."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it may be cut off while it sends, with an answer on its way
        reader.sock.sendall(data)
    try:
        while len(found) < count:
            found.append(reader.answer()[0])
    except TimeoutError:
        found.append(LATE)
    except (OSError, LostError):
        found.append(GONE)
    return found


def _drip(start: bytes, byte: bytes) -> Callable[[Target], list[int]]:
    """Some connections that send byte after byte and never finish a request."""

    def run(target: Target) -> list[int]:
        readers = [Reader(target.address, _SOURCE, target.slow_s) for _ in range(4)]
        try:
            end = time.monotonic() + target.slow_s
            for reader in readers:
                reader.sock.sendall(start)
            left = list(readers)
            while left and time.monotonic() < end:
                done, _, _ = select.select([reader.sock for reader in left], [], [], 0.2)
                left = [reader for reader in left if reader.sock not in done]
                for reader in left:
                    with contextlib.suppress(OSError):
                        reader.sock.sendall(byte)
            if left:
                raise AssertionError(f"{len(left)} slow connections are held open")
            return [status for reader in readers for status in _answers(reader, b"", 1)]
        finally:
            for reader in readers:
                reader.close()

    return run


def _endless_chunks(target: Target) -> list[int]:
    with contextlib.closing(Reader(target.address, _SOURCE, target.slow_s)) as reader:
        start = post(b"", "Transfer-Encoding: chunked", length=-1)
        return _answers(reader, start + (b"10000\r\n" + bytes(1 << 16) + b"\r\n") * 500, 1)


def _pipeline(target: Target) -> list[int]:
    with contextlib.closing(Reader(target.address, _SOURCE, target.slow_s)) as reader:
        return _answers(reader, LIVE * 2000, 2000)


def _never_reads(target: Target) -> list[int]:
    """Asks for page after page and reads none."""
    with contextlib.closing(Reader(target.address, _SOURCE, target.slow_s)) as reader:
        reader.sock.settimeout(target.slow_s)
        with contextlib.suppress(OSError):
            while True:
                reader.sock.sendall(b"GET /v2/models/copy HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
    return []


def _vanish(data: bytes) -> Callable[[Target], list[int]]:
    """Part of a request, then a reset."""

    def run(target: Target) -> list[int]:
        for _ in range(8):
            reader = Reader(target.address, _SOURCE)
            with contextlib.suppress(OSError):
                reader.sock.sendall(data[: int(target.rng.integers(0, len(data)))])
            _reset(reader.sock)
        return []

    return run


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def _crowd(target: Target) -> list[int]:
    """More connections from one address than it may have."""
    return _hold(target, [_SOURCE] * _CROWD)


def _sybils(target: Target) -> list[int]:
    """More connections than there may be, each from an address of its own."""
    return _hold(target, _addresses(target, _SYBILS))


def _hold(target: Target, sources: Sequence[str]) -> list[int]:
    readers: list[Reader] = []
    try:
        for source in sources:
            with contextlib.suppress(OSError):
                readers.append(Reader(target.address, source, target.slow_s))
        return [status for reader in readers for status in _answers(reader, LIVE, 1)]
    finally:
        for reader in readers:
            _reset(reader.sock)


def _addresses(target: Target, count: int) -> list[str]:
    return [f"127.{a}.{b}.{c}" for a, b, c in target.rng.integers(1, 255, (count, 3))]


def _sybil_queries(target: Target) -> list[int]:
    """Queries in order, each from a peer never seen before."""
    for source in _addresses(target, 30):
        _judged(target, "sybil", [source])
    return []


def _burst(target: Target) -> list[int]:
    """More queries at a time from one address than may wait."""
    _judged(target, "burst", ["127.0.0.67"] * _BURST)
    return []


def _judged(target: Target, kind: str, sources: Sequence[str]) -> None:
    """One query on a connection from each address, all at a time."""
    clients: list[Http] = []
    try:
        for source in sources:
            with contextlib.suppress(TurnedAwayError):
                clients.append(Http(target.address, source))
        queries = [target.pool.draw(target.rng, 8) for _ in clients]
        for client, query in zip(clients, queries, strict=True):
            client.send([query])
        for client, query in zip(clients, queries, strict=True):
            try:
                (answer,) = client.read()
            except (OSError, LostError) as error:
                target.ledger.lost(kind, [query], error)
            else:
                target.ledger.judge(kind, query, answer)
    finally:
        for client in clients:
            client.close()


def _leave(target: Target) -> list[int]:
    """Queries in order, and gone before the answer."""
    for _ in range(8):
        query = target.pool.draw(target.rng)
        reader = Reader(target.address, _SOURCE)
        target.ledger.abandoned(query)
        with contextlib.suppress(OSError):
            reader.sock.sendall(request(query.frames, "x"))
            time.sleep(target.rng.uniform(0, 0.02))
        _reset(reader.sock)
    return []


def _socket_leave(target: Target) -> list[int]:
    for _ in range(8):
        query = target.pool.draw(target.rng)
        with contextlib.suppress(TurnedAwayError, OSError):
            client = LabelSocket(target.path)
            target.ledger.abandoned(query)
            client.send(query)
            time.sleep(target.rng.uniform(0, 0.02))
            client.close()
    return []


def _socket_raw(data: bytes) -> Callable[[Target], list[int]]:
    """Bytes after the hello; the code of the answer."""

    def run(target: Target) -> list[int]:
        with contextlib.closing(LabelSocket(target.path)) as client:
            client.sock.settimeout(target.slow_s)
            try:
                client.sock.sendall(data)
                answer = client.read(socket_wire.ANSWER_BYTES)
            except TimeoutError:
                raise AssertionError("a slow connection is held open") from None
            except (OSError, LostError):
                return [GONE]
            return [struct.unpack("<4s5I", answer)[2]]

    return run


def _socket_crowd(target: Target) -> list[int]:
    clients: list[LabelSocket] = []
    for _ in range(_CROWD):
        with contextlib.suppress(TurnedAwayError):
            clients.append(LabelSocket(target.path))
    for client in clients:
        client.close()
    return []


def attacks() -> dict[str, Attack]:
    """Every attack, by name."""
    head = struct.Struct("<4sIII")
    bad, none = frozenset({GONE, 1, 2}), frozenset[int]()
    partial = request(FRAME, "x")
    found = {name: Attack(_once(data), allowed) for name, (data, allowed) in refusals().items()}
    slow = frozenset({408}) | AWAY
    return found | {
        "slow head": Attack(_drip(b"GET /v2 HTTP/1.1\r\nX-A: ", b"b"), slow),
        "slow body": Attack(_drip(partial[:-2000], b"b"), slow),
        "silence": Attack(_drip(b"", b""), slow),
        "endless chunks": Attack(_endless_chunks, frozenset({413}) | AWAY),
        "pipeline": Attack(_pipeline, frozenset({200, 400}) | AWAY),
        "never reads": Attack(_never_reads, none),
        "vanish": Attack(_vanish(partial[:-1]), none),
        "crowd": Attack(_crowd, frozenset({200}) | AWAY),
        "sybils": Attack(_sybils, frozenset({200}) | AWAY),
        "sybil queries": Attack(_sybil_queries, none),
        "burst": Attack(_burst, none),
        "leave": Attack(_leave, none, leaves=True),
        "socket garbage": Attack(_socket_raw(bytes(64)), bad),
        "socket no frames": Attack(_socket_raw(head.pack(socket_wire.QUERY_MAGIC, 7, 0, 0)), bad),
        "socket too many": Attack(_socket_raw(head.pack(socket_wire.QUERY_MAGIC, 7, 2**32 - 1, 0)), bad),
        "socket reserved": Attack(_socket_raw(head.pack(socket_wire.QUERY_MAGIC, 7, 1, 9)), bad),
        "socket slow": Attack(_socket_raw(head.pack(socket_wire.QUERY_MAGIC, 7, 64, 0) + bytes(999)), bad),
        "socket crowd": Attack(_socket_crowd, none),
        "socket leave": Attack(_socket_leave, none, leaves=True),
    }
