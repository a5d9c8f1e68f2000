"""Clients whose requests are dear to read: what they cost everyone else."""

from __future__ import annotations

import gzip
import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from testbed.devices import workplace
from testbed.serving import INFER, Faulty, Http, device_with, infer_binary, infer_json, serving, until
from variegate.keys.manifest import Manifest
from variegate.runtime.port import LabelPort
from variegate.serve import encodings, oip
from variegate.serve.limits import ServeLimits, Spec
from variegate.serve.server import Service

SHAPE = (3, 224, 224)
FRAMES = np.zeros((64, *SHAPE), np.float32)
FRAMES[:, :, ::16] = np.random.default_rng(5).random((64, 3, 14, 224), np.float32)
"""39 MB that unfold from about a sixteenth."""


class Large(Faulty):
    """A real port that says that its frames are large. It gives no labels of them: their reading is what is tested."""

    @property
    def manifest(self) -> Manifest:
        return replace(self.port.manifest, shape=SHAPE, dtype="float32")

    def classify_batch(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        self.hang.wait(20)
        return np.zeros(len(frames), np.int64)


@pytest.fixture(scope="module")
def port() -> Iterator[LabelPort]:
    with workplace() as folder, device_with(folder) as device:
        yield device.boot()


def crowd(
    service: Service, body: bytes, headers: dict[str, str], seconds: float, connections: int = 16
) -> tuple[list[int], list[float]]:
    """What connections of one address are told, and how long health took meanwhile, in seconds."""
    http_ = Http(service)
    end = time.monotonic() + seconds
    told: list[int] = []

    def ask() -> None:
        connection = http.client.HTTPConnection(*http_.address, timeout=30)
        while time.monotonic() < end:
            try:
                connection.request("POST", INFER, body, headers)
                answer = connection.getresponse()
                answer.read()
                told.append(answer.status)
            except OSError:  # answered and closed before the body was sent
                connection.close()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    for thread in threads:
        thread.start()
    took: list[float] = []
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        assert http_.ask("GET", "/v2/health/live")[0] == 200
        took.append(time.monotonic() - began)
        time.sleep(0.05)
    return told, took


@pytest.mark.parametrize("kind", ["gzip", "json"])
def test_health_does_not_wait_for_the_bodies_of_a_crowd(port: LabelPort, kind: str) -> None:
    if kind == "gzip":
        plain, split = infer_binary(FRAMES)
        body = gzip.compress(plain, 1)
        headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(split)}
    else:
        body, headers = infer_json(np.zeros((5, *SHAPE), np.float32)), {}
    with serving(Large(port), limits=ServeLimits(keep_alive_s=1)) as service:
        told, took = crowd(service, body, headers, 1.5)
        assert 200 in told
        assert set(told) <= {200, 503}
        # Were bodies read on the loop, most answers would wait for that; one may wait for a busy machine.
        assert sorted(took)[len(took) * 9 // 10] < 1.0
        until(lambda: Http(service).ask("POST", INFER, body, **headers)[0] == 200)


def test_compressed_bodies_that_wait_leave_room_for_one_to_be_opened(
    port: LabelPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, patience = encodings.decoded, iter([1.5])

    def late(*of: Any) -> bytes | bytearray:
        time.sleep(next(patience, 0))  # until the others are here as a whole
        return decoded(*of)

    monkeypatch.setattr(encodings, "decoded", late)
    plain, split = infer_binary(FRAMES)
    body = gzip.compress(plain, 0)  # as long as it was
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(split)}
    with serving(Large(port)) as service:
        told, _ = crowd(service, body, headers, 0.5, connections=4)
    assert 200 in told


def test_bodies_that_are_dear_are_not_read_on_the_loop(port: LabelPort, monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[str] = []
    parse = oip.parse_infer

    def seen(body: bytes | bytearray, split: int | None, spec: Spec) -> oip.InferRequest:
        where.append(threading.current_thread().name)
        return parse(body, split, spec)

    monkeypatch.setattr(oip, "parse_infer", seen)
    with serving(Large(port)) as service:
        plain, split = infer_binary(FRAMES[:1])
        binary = {"Inference-Header-Content-Length": str(split)}
        for body, headers in (
            (gzip.compress(plain, 1), {"Content-Encoding": "gzip", **binary}),
            (infer_json(FRAMES[:1]), {}),
            (plain, binary),
        ):
            assert Http(service).ask("POST", INFER, body, **headers)[0] == 200
    assert where[:2] == ["variegate-bodies"] * 2
    assert where[2] != "variegate-bodies"  # a view of bytes: handing it over would cost more


def test_one_who_has_no_room_to_wait_is_not_read(port: LabelPort) -> None:
    slow = Large(port)
    with serving(slow, limits=ServeLimits(max_peer_queue=1), metrics_port=0) as service:
        slow.hang.clear()
        plain, split = infer_binary(FRAMES[:1])
        packed = gzip.compress(plain, 1)
        headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(split)}
        told: list[int] = []
        threads = [
            threading.Thread(target=lambda: told.append(Http(service).ask("POST", INFER, packed, **headers)[0]))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
            time.sleep(0.3)  # one in the engine, one waiting
        assert Http(service).ask("POST", INFER, b"no gzip at all", **headers)[0] == 503
        slow.hang.set()
        for thread in threads:
            thread.join()
        assert told == [200, 200]
        assert Http(service).ask("POST", INFER, b"no gzip at all", **headers)[0] == 400


def test_opened_bodies_are_counted_for_as_long_as_they_are_held(port: LabelPort) -> None:
    slow = Large(port)
    limits = ServeLimits(max_buffer_bytes=1)
    most = Spec.of(slow.manifest, limits).body_bytes * 2
    with serving(slow, limits=limits, metrics_port=0) as service:
        slow.hang.clear()
        plain, split = infer_binary(FRAMES[:40])
        packed = gzip.compress(plain, 1)
        headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(split)}
        fit = most // len(plain)
        assert len(packed) * 4 < len(plain)  # as they came, all would find room
        told: list[int] = []
        threads = [
            threading.Thread(target=lambda: told.append(Http(service).ask("POST", INFER, packed, **headers)[0]))
            for _ in range(fit + 1)
        ]
        for thread in threads:
            thread.start()
        until(lambda: told == [503])
        slow.hang.set()
        for thread in threads:
            thread.join()
        assert sorted(told) == [200] * fit + [503]
