"""The label socket: its bytes, its bounds, and a client in C."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from testbed.artefacts import CLASSES, SHAPE, frames
from testbed.devices import workplace
from testbed.serving import Faulty, Http, device_with, read_all, serving, until
from tests.support.floats import float_payload
from variegate.keys.errors import MisuseError
from variegate.keys.manifest import Policy
from variegate.runtime.port import LabelPort
from variegate.serve import answers, socket_wire
from variegate.serve.limits import ServeLimits, Spec

ROOT = Path(__file__).resolve().parents[1]
C = ROOT / "examples" / "c"
FRAME = 48


@pytest.fixture(scope="module")
def port() -> Iterator[LabelPort]:
    with workplace() as folder, device_with(folder) as device:
        yield device.boot()


@pytest.fixture(scope="module")
def path(port: LabelPort) -> Iterator[Path]:
    limits = ServeLimits(body_s=1.0, max_connections=6, max_peer_connections=6)
    with workplace() as folder, serving(port, socket=folder / "labels", limits=limits):
        yield folder / "labels"


class Client:
    """The protocol by hand."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(path))
        try:
            self.hello = self.read(32)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def read(self, count: int) -> bytes:
        out = b""
        while len(out) < count:
            part = self.sock.recv(count - len(out))
            if not part:
                raise EOFError
            out += part
        return out

    def ask(self, raw: bytes, count: int, number: int = 7) -> tuple[int, int, list[int]]:
        self.sock.sendall(struct.pack("<4sIII", b"VGQ1", number, count, 0) + raw)
        return self.answer(number)

    def answer(self, number: int = 7) -> tuple[int, int, list[int]]:
        magic, found, status, retry, count, zero = struct.unpack("<4sIIIII", self.read(24))
        assert (magic, found, zero) == (b"VGA1", number, 0)
        return status, retry, list(struct.unpack(f"<{count}I", self.read(4 * count)))


def test_says_hello(path: Path) -> None:
    with Client(path) as client:
        assert struct.unpack("<4sHBB3IIII", client.hello) == (b"VGH1", 1, 1, 3, *SHAPE, CLASSES, 64, FRAME)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_gives_the_direct_labels(path: Path, port: LabelPort) -> None:
    with Client(path) as client:
        for number in range(50):
            shown = frames(1 + number % 64, seed=number)
            status, _, labels = client.ask(shown.tobytes(), len(shown), number)
            assert status == 0
            assert labels == port.classify_batch(shown).tolist()


def test_queries_sent_ahead_are_answered_in_order(path: Path, port: LabelPort) -> None:
    shown = frames(20, seed=4)
    with Client(path) as client:
        client.sock.sendall(
            b"".join(struct.pack("<4sIII", b"VGQ1", i, 1, 0) + shown[i].tobytes() for i in range(len(shown)))
        )
        assert [client.answer(i)[2][0] for i in range(20)] == port.classify_batch(shown).tolist()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ((b"VGQ2", 7, 1, 0), 1),
        ((b"VGQ1", 7, 0, 0), 1),
        ((b"VGQ1", 7, 1, 1), 1),
        ((b"VGQ1", 7, 65, 0), 2),
        ((b"VGQ1", 7, 0xFFFFFFFF, 0), 2),
    ],
)
def test_malformed_heads_end_the_connection(path: Path, head: tuple[bytes, int, int, int], status: int) -> None:
    with Client(path) as client:
        client.sock.sendall(struct.pack("<4sIII", *head))
        assert client.answer() == (status, 0xFFFFFFFF, [])
        assert read_all(client.sock) == b""


def test_slow_queries_end_and_idle_clients_stay(path: Path) -> None:
    with Client(path) as idle, Client(path) as slow, Client(path) as slower:
        slow.sock.sendall(b"VG")
        slower.sock.sendall(struct.pack("<4sIII", b"VGQ1", 7, 2, 0) + bytes(FRAME))
        began = time.monotonic()
        assert read_all(slow.sock) == read_all(slower.sock) == b""
        assert 0.5 < time.monotonic() - began < 4
        assert idle.ask(frames(1).tobytes(), 1)[0] == 0


def test_connections_are_bounded(path: Path) -> None:
    held = [Client(path) for _ in range(6)]
    with pytest.raises((EOFError, ConnectionError)):
        Client(path)
    for client in held:
        client.sock.close()
    time.sleep(0.2)
    with Client(path) as client:
        assert client.ask(frames(1).tobytes(), 1)[0] == 0


def test_frames_have_one_bound_with_http(tmp_path: Path) -> None:
    shape_bytes = 64 * FRAME
    with device_with(tmp_path / "a") as device:
        port = Faulty(device.boot())
        # The floor: twice the largest request.
        with serving(port, socket=tmp_path / "s", limits=ServeLimits(max_buffer_bytes=1), metrics_port=0) as service:
            most = 2 * Spec.of(port.manifest, ServeLimits()).body_bytes
            port.hang.clear()
            held = [Client(tmp_path / "s") for _ in range(most // shape_bytes)]
            for client in held:
                client.sock.sendall(struct.pack("<4sIII", b"VGQ1", 7, 64, 0) + bytes(shape_bytes - 1))
            http = Http(service)
            assert service.metrics_address is not None

            def buffered() -> int:
                text = Http.__new__(Http)
                text.address = service.metrics_address  # type: ignore[assignment]
                found = re.search(rb"^variegate_buffered_bytes (\d+)$", text.ask("GET", "/metrics")[2], re.MULTILINE)
                assert found is not None
                return int(found[1])

            until(lambda: buffered() == len(held) * (shape_bytes - 1))
            assert http.infer(frames(64))[0] == 503
            with Client(tmp_path / "s") as late:
                status, retry, _ = late.ask(bytes(shape_bytes), 64)
                assert (status, retry <= 1001) == (answers.BUSY, True)
                for client in held:
                    client.sock.close()
                until(lambda: buffered() == 0)
                port.hang.set()
                shown = frames(64)
                assert late.ask(shown.tobytes(), 64)[2] == port.classify_batch(shown).tolist()  # in step again
            assert http.infer(frames(64))[0] == 200
            until(lambda: buffered() == 0)


def test_budget_rate_and_floats(tmp_path: Path) -> None:
    place = tmp_path / "s"
    with (
        device_with(tmp_path / "a", policy=Policy(budget=3)) as device,
        serving(device.boot(), socket=place),
        Client(place) as client,
    ):
        assert client.ask(frames(2).tobytes(), 2)[0] == 0
        assert client.ask(frames(2).tobytes(), 2) == (answers.SPENT, 0xFFFFFFFF, [])
        assert client.ask(frames(1).tobytes(), 1)[0] == 0
    policy = Policy(rate_per_hour=3600, burst=2)
    with (
        device_with(tmp_path / "b", policy=policy) as device,
        serving(device.boot(), socket=place),
        Client(place) as client,
    ):
        status, retry, _ = client.ask(frames(2).tobytes(), 2)
        assert (status, retry > 1000, retry <= 2002) == (answers.RATE, True, True)
    with device_with(tmp_path / "c", payload=float_payload(), dtype="float32") as device:
        port = device.boot()
        with serving(port, socket=place), Client(place) as client:
            shown = (frames(3) / np.float32(255)).astype("<f4")
            assert client.ask(shown.tobytes(), 3)[2] == port.classify_batch(shown).tolist()
            shown[1, 0, 0, 0] = np.nan
            assert client.ask(shown.tobytes(), 3)[0] == answers.INPUT
            assert client.ask(shown[:1].tobytes(), 1)[0] == 0  # the connection goes on


def test_without_http(port: LabelPort, tmp_path: Path) -> None:
    with serving(port, host=None, socket=tmp_path / "s") as service, Client(tmp_path / "s") as client:
        assert service.address is None
        assert client.ask(frames(1).tobytes(), 1)[0] == 0
    with pytest.raises(MisuseError, match="neither"), serving(port, host=None):
        pass


def test_a_path_that_is_taken_is_refused(port: LabelPort, path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for taken in (path, tmp_path / "file", tmp_path, tmp_path / "none" / "s", tmp_path / ("x" * 200)):
        with pytest.raises(MisuseError), serving(port, socket=taken):
            pass
    assert (tmp_path / "file").read_text() == "precious"
    left = socket.socket(socket.AF_UNIX)  # as a killed server leaves it
    left.bind(str(tmp_path / "left"))
    left.close()
    with serving(port, socket=tmp_path / "left"), Client(tmp_path / "left") as client:
        assert client.ask(frames(1).tobytes(), 1)[0] == 0


def test_shares_the_engine_with_http(port: LabelPort, tmp_path: Path) -> None:
    wrong: list[object] = []
    with serving(port, socket=tmp_path / "s") as service:

        def by_socket() -> None:
            with Client(tmp_path / "s") as client:
                for number in range(50):
                    shown = frames(3, seed=number)
                    if client.ask(shown.tobytes(), 3)[2] != port.classify_batch(shown).tolist():
                        wrong.append("socket")

        def by_http() -> None:
            for number in range(50):
                shown = frames(3, seed=number)
                status, answer = Http(service).infer(shown)
                if status != 200 or answer["outputs"][0]["data"] != port.classify_batch(shown).tolist():
                    wrong.append(status)

        threads = [threading.Thread(target=one) for one in (by_socket, by_http, by_socket)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_header_and_the_page_are_the_protocols() -> None:
    header = (C / "variegate_label.h").read_text()
    defined = {name: int(value) for name, value in re.findall(r"VG_E_(\w+) = (\d+)", header)}
    assert defined == {
        name: getattr(answers, name)
        for name in ("INPUT", "TOO_LARGE", "RATE", "SPENT", "NOT_CURRENT", "DOWN", "BUSY", "CLOSING")
    }
    sizes = dict(re.findall(r"#define VG_(\w+)_BYTES (\d+)u", header))
    assert sizes == {
        "HELLO": str(socket_wire.HELLO_BYTES),
        "QUERY": str(socket_wire.QUERY_BYTES),
        "ANSWER": str(socket_wire.ANSWER_BYTES),
    }
    page = (ROOT / "docs" / "label-socket.md").read_text()
    for size, name in ((32, "hello"), (16, "query"), (24, "answer")):
        assert f"| {name}, {size} bytes" in page
    for code in range(9):
        assert f"\n| {code} | " in page


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("needs gcc and make")
    out = tmp_path_factory.mktemp("c") / "example"
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    done = subprocess.run(
        ["make", "-C", str(C), f"OUT={out}", "CC=gcc"],
        env={**os.environ, "CFLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_the_example_in_c_gets_the_direct_labels(example: Path, path: Path, port: LabelPort) -> None:
    shown = frames(200, seed=11)
    done = subprocess.run([example, path], input=shown.tobytes(), capture_output=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(map(int, done.stdout.split())) == port.classify_batch(shown).tolist()


def test_the_example_in_c_drops_no_part_of_a_frame(example: Path, path: Path, port: LabelPort) -> None:
    shown = frames(70, seed=11)
    done = subprocess.run(
        [example, path], input=shown.tobytes() + bytes(FRAME - 1), capture_output=True, check=False, timeout=20
    )
    assert (done.returncode, done.stderr) == (2, b"the input ends within a frame\n")
    assert list(map(int, done.stdout.split())) == port.classify_batch(shown).tolist()


def test_the_wait_in_c_is_bounded_as_a_whole(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    (tmp_path / "wait.c").write_text(
        "#define _POSIX_C_SOURCE 200809L\n#include <stdio.h>\n"
        f'#include "{C / "variegate_label.h"}"\n'
        'int main(int c, char **v) { vg_label_port p; (void)c; printf("%d", vg_open(&p, v[1], 600) == -ETIMEDOUT); }\n'
    )
    command = ["gcc", "-std=c99", "-Wall", "-Werror", str(tmp_path / "wait.c"), "-o", str(tmp_path / "wait")]
    subprocess.run(command, check=True)
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(1)

        def drip() -> None:
            accepted, _ = server.accept()
            with accepted:
                while not ended.wait(0.2):  # each wait for a byte is short
                    try:
                        accepted.send(b"V")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        done = subprocess.run([tmp_path / "wait", tmp_path / "s"], capture_output=True, check=False, timeout=20)
        ended.set()
        thread.join()
    assert done.stdout == b"1"
    assert 0.5 < time.monotonic() - began < 5


def test_the_example_in_c_says_what_is_wrong(example: Path, tmp_path: Path) -> None:
    place = tmp_path / "s"
    done = subprocess.run([example, place], input=b"", capture_output=True, check=False, timeout=20)
    assert done.returncode == 2
    with device_with(tmp_path / "a", policy=Policy(budget=3)) as device, serving(device.boot(), socket=place):
        shown = frames(5).tobytes()
        done = subprocess.run([example, place], input=shown, capture_output=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (1, b"the device refused: status 4\n")


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"VGH2" + bytes(28),
        b"HTTP/1.1 400 Bad Request\r\n\r\n        ",
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, 3, 4, 4, 10, 0, 48),
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, 3, 4, 4, 10, 64, 49),
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 2, 3, 3, 4, 4, 10, 64, 48),
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, 1 << 16, 1 << 16, 1 << 16, 10, 1, 48),
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, 3, 4, 4, 10, 64, 48) + b"VGA1" + bytes(20),
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, 3, 4, 4, 10, 64, 48)
        + struct.pack("<4sIIIII", b"VGA1", 0, 0, 0, 0xFFFFFFFF, 0),
    ],
)
def test_the_example_in_c_survives_a_hostile_server(example: Path, tmp_path: Path, reply: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(1)

        def serve() -> None:
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(reply)
                accepted.shutdown(socket.SHUT_WR)
                read_all(accepted)

        thread = threading.Thread(target=serve)
        thread.start()
        done = subprocess.run([example, tmp_path / "s"], input=bytes(48), capture_output=True, check=False, timeout=20)
        thread.join()
    assert done.returncode == 2, done.stderr
    assert b"runtime error" not in done.stderr
    assert b"AddressSanitizer" not in done.stderr
