"""Real servers for real devices, in this process, on free ports."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from testbed.artefacts import CLASS, seal_for
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.keys.errors import DeviceError
from variegate.keys.manifest import Manifest, Policy
from variegate.keys.seller import Seller
from variegate.runtime.enclave import Status
from variegate.runtime.port import LabelPort
from variegate.serve.server import ServeOptions, Service

INFER = "/v2/models/copy/infer"


@contextmanager
def device_with(folder: Path, *, policy: Policy | None = None, **changes: Any) -> Iterator[Device]:
    """A device that has a copy of the tiny graph flashed."""
    seller = Seller.generate()
    folder.mkdir(exist_ok=True)
    with Device.create(folder / "device", CLASS, seller.root) as device:
        flash(device, seal_for(device.identity, seller.signer, policy=policy or Policy(), **changes))
        yield device


@contextmanager
def serving(port: LabelPort, /, **options: Any) -> Iterator[Service]:
    """A running service over a port, HTTP on a free port of this machine if not told otherwise."""
    started = threading.Event()
    service = Service(port, ServeOptions(**{"port": 0, **options}), on_start=lambda _: started.set())
    failed: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(20)
        if failed:
            raise failed[0]
        yield service
    finally:
        service.stop()
        thread.join(30)
        assert not thread.is_alive(), "the service did not stop"


class Http:
    """A plain client of one service."""

    def __init__(self, service: Service) -> None:
        assert service.address is not None
        self.address = service.address

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own; underscores in header names become dashes."""
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def infer(self, frames: NDArray[Any], **changes: Any) -> tuple[int, dict[str, Any]]:
        """A JSON request; `changes` are members of its input."""
        status, _, body = self.ask("POST", INFER, infer_json(frames, **changes))
        return status, json.loads(body)

    def raw(self, data: bytes, *, wait_s: float = 10.0) -> bytes:
        """Sends bytes and reads until the other side closes."""
        with socket.create_connection(self.address, timeout=wait_s) as sock:
            sock.sendall(data)
            return read_all(sock)


def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that must come true."""
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def waiting(service: Service) -> int:
    """Queries in the queue, from the metrics; the service has a port for them."""
    assert service.metrics_address is not None
    connection = http.client.HTTPConnection(*service.metrics_address, timeout=20)
    try:
        connection.request("GET", "/metrics")
        found = re.search(rb"^variegate_queue (\d+)$", connection.getresponse().read(), re.MULTILINE)
        assert found is not None
        return int(found[1])
    finally:
        connection.close()


def read_all(sock: socket.socket) -> bytes:
    """The bytes until the end, or until the connection breaks."""
    out = bytearray()
    try:
        while chunk := sock.recv(65536):
            out += chunk
    except ConnectionResetError:
        pass
    return bytes(out)


def infer_json(frames: NDArray[Any], **changes: Any) -> bytes:
    """The body of an infer request with JSON data."""
    names = {"uint8": "UINT8", "float32": "FP32"}
    tensor = {
        "name": "image",
        "shape": list(frames.shape),
        "datatype": names.get(str(frames.dtype), "FP64"),
        "data": frames.tolist(),
        **changes,
    }
    return json.dumps({"inputs": [tensor]}).encode()


def infer_binary(frames: NDArray[Any]) -> tuple[bytes, int]:
    """The body of an infer request with binary data, and the length of its JSON."""
    raw = frames.tobytes()
    tensor = {
        "name": "image",
        "shape": list(frames.shape),
        "datatype": "UINT8" if frames.dtype == np.uint8 else "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + raw, len(header)


class Faulty:
    """A real port whose queries can be made to fail or hang, as those of an isolated enclave may."""

    def __init__(self, port: LabelPort) -> None:
        self.port = port
        self.error: Exception | None = None
        self.down = False
        self.hang = threading.Event()
        self.hang.set()
        self.asked: list[int] = []

    @property
    def manifest(self) -> Manifest:
        return self.port.manifest

    def classify(self, frame: NDArray[Any]) -> int:
        return int(self.classify_batch(frame[np.newaxis])[0])

    def classify_batch(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        self.asked.append(len(frames))
        self.hang.wait(20)
        if self.error is not None:
            raise self.error
        return self.port.classify_batch(frames)

    def self_test(self) -> None:
        self.port.self_test()

    def status(self) -> Status:
        if self.down:
            raise DeviceError("enclave is down")
        return self.port.status()

    def close(self) -> None:
        self.hang.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
