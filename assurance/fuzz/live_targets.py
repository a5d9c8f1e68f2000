"""Targets behind real sockets and real processes: the HTTP server, the label socket, a hostile enclave process."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from assurance.fuzz import mutation
from assurance.fuzz.target import Broken, Run, Target, need, verdict
from assurance.fuzz.wire_targets import HELD, joined, of_packets, questions, split
from testbed import artefact_parts as parts
from testbed.artefacts import CLASS, frames, seal_for
from testbed.serving import Http, device_with, infer_binary, infer_json, read_all, serving
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.isolation import launch, wire
from variegate.isolation.host import Isolated, IsolatedHost
from variegate.isolation.platform_client import protections_to_values
from variegate.isolation.policy import DevicePolicy
from variegate.isolation.process import Process
from variegate.isolation.wire import Kind, Lost
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import DeviceError, RefusedError, VariegateError
from variegate.serve.limits import ServeLimits

_INFER = "/v2/models/copy/infer"
_LIMITS = ServeLimits(head_s=0.3, body_s=0.3, write_s=1.0, keep_alive_s=1, max_connections=16, max_peer_connections=16)
_STATUSES = {b"200", b"400", b"403", b"404", b"405", b"408", b"413", b"415", b"421", b"431", b"503"}
_SILENT_S = 0.03
_CHECK_EVERY = 64
_SPARE = 8
"""Descriptors that may be open for a moment: connections about to be closed."""
_FRAME, _HELLO, _HEAD, _ANSWER = 48, 32, 16, 24
_QUERY = struct.Struct("<4sIII")
_REPLY = struct.Struct("<4sIIIII")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  one call, often


@contextlib.contextmanager
def _http(folder: Path) -> Iterator[Run]:
    """Raw bytes to the server; it answers in HTTP or not at all, stays well, and keeps no descriptor."""
    with device_with(folder) as device, serving(device.boot(), limits=_LIMITS) as service:
        client, turns, before = Http(service), itertools.count(1), 0

        def run(data: bytes) -> str:
            nonlocal before
            with socket.create_connection(client.address, timeout=8) as sock:
                answer = _talk(sock, data)
            need(not answer or answer.startswith(b"HTTP/1.1 "), "an answer that is no HTTP")
            found = re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)
            need(set(found) <= _STATUSES, f"status {found}")
            if next(turns) % _CHECK_EVERY == 0:
                need(client.ask("GET", "/v2/health/ready")[0] == 200, "not ready any more")
                need(client.infer(frames(1))[0] == 200, "no labels any more")
                before = before or _descriptors()
                need(_descriptors() <= before + _SPARE, "descriptors stay open")
            return b" ".join(found).decode()

        yield run


def _talk(sock: socket.socket, data: bytes) -> bytes:
    """Sends; hears until it is silent; hangs up half; hears the rest."""
    heard = b""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)
        sock.settimeout(_SILENT_S)
        with contextlib.suppress(TimeoutError):
            while more := sock.recv(65536):
                heard += more
        sock.settimeout(8)
        sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        heard += read_all(sock)
    return heard


def _requests() -> list[bytes]:
    def post(body: bytes, *headers: str) -> bytes:
        lines = [f"POST {_INFER} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
        return "\r\n".join(lines).encode() + body

    body, length = infer_binary(frames(1))
    text = infer_json(frames(1))
    pages = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    pages += b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return [
        post(text, "Connection: close"),
        post(body, f"Inference-Header-Content-Length: {length}", "Connection: close"),
        pages,
        f"POST {_INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        + b"%x\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (len(text), text),
        post(b"x" * 9, "Content-Encoding: gzip", "Connection: close"),
    ]


@contextlib.contextmanager
def _label_socket(folder: Path) -> Iterator[Run]:
    """A stream of queries; the answers must match a simple reading of the same bytes."""
    with device_with(folder) as device, device.boot() as port:
        path = folder / "labels"
        with serving(port, socket=path, limits=_LIMITS):

            def run(data: bytes) -> str:
                wanted, closes = _expected(data, lambda shown: port.classify_batch(shown).tolist())
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                    sock.settimeout(8)
                    sock.connect(str(path))
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        sock.sendall(data)
                    heard = b""
                    with contextlib.suppress(ConnectionResetError):
                        while len(heard) < _HELLO + len(wanted) and (more := sock.recv(65536)):
                            heard += more
                        sock.shutdown(socket.SHUT_WR)
                        heard += read_all(sock)
                need(heard.startswith(b"VGH1") or closes, "no hello")
                need(heard[_HELLO:] == wanted, "other answers than the queries call for")
                return f"{len(wanted)} bytes{', closed' if closes else ''}"

            yield run


def _expected(
    data: bytes, labels: Callable[[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], list[int]]
) -> tuple[bytes, bool]:
    """The answers, and whether the server hangs up by itself."""
    out = b""
    while len(data) >= _HEAD:
        magic, number, count, rest = _QUERY.unpack(data[:_HEAD])
        if magic != b"VGQ1" or rest or count < 1:
            return out + _REPLY.pack(b"VGA1", number, 1, 0xFFFFFFFF, 0, 0), True
        if count > _LIMITS.max_batch:
            return out + _REPLY.pack(b"VGA1", number, 2, 0xFFFFFFFF, 0, 0), True
        end = _HEAD + count * _FRAME
        if len(data) < end:
            break
        shown = np.frombuffer(data[_HEAD:end], np.uint8).reshape(count, 3, 4, 4)
        out += _REPLY.pack(b"VGA1", number, 0, 0xFFFFFFFF, count, 0) + struct.pack(f"<{count}I", *labels(shown))
        data = data[end:]
    return out, False


def _queries() -> list[bytes]:
    def query(number: int, count: int) -> bytes:
        return _QUERY.pack(b"VGQ1", number, count, 0) + frames(count).tobytes()

    return [query(1, 1), query(2, 3) + query(3, 1), _QUERY.pack(b"VGQ1", 4, 65, 0)]


_READY = bytes([Kind.READY])
"""Stands for a `READY` that opens: it holds the copy's own manifest, which is another in every run."""
_SCRIPT = """
import socket, sys, time
data = {data!r}
channel = socket.socket(fileno=int(sys.argv[1]))
packets = []
how, data = data[0], data[1:]
while len(data) > 2:
    length = int.from_bytes(data[:2], "little")
    packets.append(data[2:2 + length])
    data = data[2 + length:]
packets = [packet for packet in packets if packet]
if how & 1:
    channel.send(bytes([16, 128]))
for packet in packets:
    if how & 4:
        channel.recv(1 << 20)
    channel.send(packet)
# What a process leaves unread when it ends is reported to the supervisor before what it sent: the order is fixed here.
if how & 1 and not how & 4:
    channel.recv(1 << 20)
# To hang before a copy is open would make the supervisor wait for a minute, as it should.
if how & 2 and any(packet[0] != 20 for packet in packets):
    time.sleep(600)
"""


@contextlib.contextmanager
def _hostile_enclave(folder: Path) -> Iterator[Run]:
    """A process that is started like the enclave, and sends anything. The first byte chooses its behaviour."""
    policy = DevicePolicy(restarts=0, hang_s=0.3)
    real, image = launch.prepare, launch.prepare()
    with Device.create(folder / "device", CLASS, parts.SIGNER.root) as device:
        artefact = seal_for(device.identity, parts.SIGNER)
        manifest = open_envelope(artefact.envelope, parts.SIGNER.root).manifest.to_bytes()
        ready = wire.pack(Kind.READY, manifest, protections_to_values(HELD))
        shown = frames(2)

        def run(data: bytes) -> str:
            packets = [ready if packet == _READY else packet for packet in split(data[1:])]
            script = _SCRIPT.format(data=(data[:1] or b"\1") + joined(*packets))
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("__main__.py", script)
            hostile = replace(image, archive=archive.getvalue())
            launch.prepare = lambda: hostile
            said = []
            try:
                with contextlib.ExitStack() as stack:
                    ports: list[Isolated] = []
                    said.append(verdict(lambda: ports.append(stack.enter_context(Isolated(artefact, device, policy)))))
                    for port in ports:
                        said.append(verdict(lambda p=port: p.classify_batch(shown)))  # type: ignore[misc]
                        said.append(verdict(port.status))
            finally:
                launch.prepare = real
            return ", ".join(said)

        yield run


@contextlib.contextmanager
def _enclave_process(folder: Path) -> Iterator[Run]:
    """Packets of a hostile supervisor to a real enclave process: it answers each, or ends by itself."""
    place = folder / "device"
    with Device.create(place, CLASS, parts.SIGNER.root) as device:
        flash(device, seal_for(device.identity, parts.SIGNER))
    policy = DevicePolicy(restarts=1000, restart_window_s=1.0)
    with Device.open(place, host=IsolatedHost(policy)) as device:
        port = device.boot()
        if not isinstance(port, Isolated):
            raise Broken("not isolated")

        def run(data: bytes) -> str:
            process = _alive(port)
            said = []
            for packet in split(data):
                try:
                    said.append(Kind(process.ask(packet, device, 5.0)[0]).name)
                except VariegateError as error:
                    said.append(type(error).__name__)
                except Lost:
                    need(process.exited.wait(5), "it neither answers nor ends")
                    need(process.how_it_ended.startswith("exit status"), process.how_it_ended)
                    said.append("ended")
                    break
                except TimeoutError as error:
                    raise Broken("the enclave hangs") from error
            return ", ".join(said)

        yield run


def _alive(port: Isolated) -> Process:
    """The enclave process of a port, started again where it has ended."""
    for _ in range(3):
        process = port._keeper.process  # noqa: SLF001  the socket of a supervisor that is hostile
        try:
            port.classify(frames(1)[0])
        except DeviceError:
            continue
        except RefusedError:
            # It was told of a higher security counter, and rightly believes no lower one.
            if process is not None:
                process.end()
            continue
        if process is not None and process is port._keeper.process:  # noqa: SLF001
            return process
    raise Broken("no enclave any more")


def _hostile_seeds() -> list[bytes]:
    labels = wire.LABELS_LAYOUT.pack(Kind.LABELS, 1, 2) + np.arange(2, dtype="<i8").tobytes()
    call = wire.pack(Kind.CALL, "record", ["enclave", "detail"])
    return [
        b"\0",
        b"\1",
        b"\3" + joined(_READY),
        b"\5" + joined(_READY, labels),
        b"\3" + joined(call, _READY),
        b"\1" + joined(labels),
    ]


TARGETS = (
    Target(
        name="http",
        opened=_http,
        seeds=_requests,
        words=(
            *(b"Content-Length: ", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: h2c"),
            *(b"Content-Encoding: gzip", b"Inference-Header-Content-Length: ", b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.0"),
            *(b"PRI * HTTP/2.0", b"/v2/models/copy/infer", b"/metrics", b"%2e%2e", b"HEAD ", b"CONNECT "),
        ),
        cap=2048,
        live=True,
    ),
    Target(name="label_socket", opened=_label_socket, seeds=_queries, words=(b"VGQ1",), cap=4096, live=True),
    Target(
        name="hostile_enclave",
        opened=_hostile_enclave,
        seeds=_hostile_seeds,
        mutate=mutation.behind(1, of_packets),
        live=True,
    ),
    Target(name="enclave_process", opened=_enclave_process, seeds=questions, mutate=of_packets, live=True),
)
