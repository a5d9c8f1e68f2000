"""Every way to a device answers alike: in this process, isolated, over HTTP, TLS and a socket, and from a car."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from testbed.artefacts import CLASS, CLASSES, SHAPE, frames, seal_for
from testbed.devices import workplace
from testbed.serving import Faulty, device_with, serving
from tests.support.certificates import Authority
from tests.support.floats import float_payload
from variegate.attack.oracle import Counted, Oracle, to_points
from variegate.attack.oracles import Patience, check_oracle, open_oracle
from variegate.attack.oracles.http import HttpOracle
from variegate.attack.oracles.http_line import Trust
from variegate.attack.oracles.port import PortOracle
from variegate.attack.oracles.socket import SocketOracle
from variegate.attack.oracles.vehicle import VehicleOracle
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import POLICY_FILE, host_for, policy_of
from variegate.isolation.host import Isolated
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller
from variegate.runtime.port import LabelPort
from variegate.serve.tls import TlsFiles

WAYS = ("port", "isolated", "http", "https", "socket", "vehicle")


@contextmanager
def isolated_device(folder: Path, **changes: Any) -> Iterator[Device]:
    """A device with the default policy: its enclave is a process of its own."""
    seller = Seller.generate()
    Device.create(folder, CLASS, seller.root).close()
    assert (folder / POLICY_FILE).exists()
    with Device.open(folder, host=host_for(policy_of(folder))) as device:
        flash(device, seal_for(device.identity, seller.signer, **changes))
        yield device


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with workplace() as folder:
        yield folder


@pytest.fixture(scope="module")
def port(place: Path) -> Iterator[LabelPort]:
    with device_with(place / "plain") as device:
        yield device.boot()


@pytest.fixture(scope="module")
def ways(place: Path, port: LabelPort) -> Iterator[dict[str, Oracle]]:
    authority = Authority(place / "authority")
    server, client = authority.issue("localhost"), authority.issue("red-team")
    tls = TlsFiles(certificate=server.certificate, key=server.key, client_ca=authority.certificate)
    with ExitStack() as stack:
        service = stack.enter_context(serving(port, socket=place / "labels"))
        secured = stack.enter_context(serving(port, tls=tls))
        device = stack.enter_context(isolated_device(place / "isolated"))
        enclave = device.boot()
        assert isinstance(enclave, Isolated)
        assert service.address is not None
        assert secured.address is not None
        trust = Trust(ca=authority.certificate, certificate=client.certificate, key=client.key)
        yield {
            "port": PortOracle(port),
            "isolated": PortOracle(enclave),
            "http": stack.enter_context(open_oracle(f"http://127.0.0.1:{service.address[1]}")),
            "https": stack.enter_context(open_oracle(f"https://localhost:{secured.address[1]}/copy", trust=trust)),
            "socket": stack.enter_context(open_oracle(f"socket:{place / 'labels'}")),
            "vehicle": VehicleOracle(PortOracle(port)),
        }


@pytest.mark.parametrize("way", WAYS)
def test_a_real_device_is_as_an_attack_supposes(ways: dict[str, Oracle], port: LabelPort, way: str) -> None:
    oracle = ways[way]
    assert (oracle.shape, oracle.dtype, oracle.classes) == (SHAPE, "uint8", CLASSES)
    assert oracle.batch >= 64
    counted = Counted(oracle)
    found = check_oracle(counted, frames(70))
    found.require()
    assert (found.queries, counted.queries) == (210, 210)
    assert len(set(found.labels.tolist())) > 1
    if way != "isolated":  # another device, and so another copy
        assert np.array_equal(found.labels, port.classify_batch(frames(70)))


@pytest.mark.parametrize("way", WAYS)
def test_what_a_device_refuses_costs_nothing(ways: dict[str, Oracle], way: str) -> None:
    oracle = ways[way]
    before = getattr(oracle, "asked", 0)
    too_many = np.broadcast_to(frames(1), (oracle.batch + 1, *SHAPE))
    for wrong in (frames(1).astype(np.float32), frames(1)[:, :, :2], frames(1)[0], frames(1)[:0], too_many):
        with pytest.raises(RefusedError) as refused:
            oracle.labels(wrong)
        assert refused.value.refusal in (Refusal.INPUT, Refusal.TOO_LARGE)
    assert getattr(oracle, "asked", 0) == before
    assert oracle.labels(frames(1)).shape == (1,)


def test_float_frames_go_the_same_ways(tmp_path: Path) -> None:
    with device_with(tmp_path, payload=float_payload(), dtype="float32") as device:
        port = device.boot()
        shown = to_points(frames(20))
        with (
            serving(port, socket=tmp_path / "labels") as service,
            SocketOracle(tmp_path / "labels") as behind,
            HttpOracle(f"http://127.0.0.1:{service.address[1]}") as over,  # type: ignore[index]
        ):
            for oracle in (behind, over, PortOracle(port)):
                assert oracle.dtype == "float32"
                assert np.array_equal(oracle.labels(shown), port.classify_batch(shown))
                with pytest.raises(RefusedError):
                    oracle.labels(shown + 1)


def test_one_connection_serves_threads_in_turn(ways: dict[str, Oracle], port: LabelPort) -> None:
    for way in ("http", "https", "socket"):
        oracle = ways[way]
        wrong: list[int] = []

        def ask(seed: int, oracle: Oracle = oracle, wrong: list[int] = wrong) -> None:
            for i in range(5):
                shown = frames(3, seed=10 * seed + i)
                if not np.array_equal(oracle.labels(shown), port.classify_batch(shown)):
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not wrong


def test_a_spent_budget_ends_and_is_counted(tmp_path: Path) -> None:
    with device_with(tmp_path, policy=Policy(budget=20)) as device:
        port = device.boot()
        with (
            serving(port, socket=tmp_path / "labels") as service,
            SocketOracle(tmp_path / "labels") as behind,
            HttpOracle(f"http://127.0.0.1:{service.address[1]}") as over,  # type: ignore[index]
        ):
            every = (behind, over, PortOracle(port))
            for oracle in every:
                oracle.labels(frames(5))
            for oracle in every:
                with pytest.raises(LimitError) as limit:
                    oracle.labels(frames(6))
                assert limit.value.retry_after_s is None
                assert oracle.asked == 5
            assert port.status().answered == 15


def test_a_rate_is_waited_for_within_patience(tmp_path: Path) -> None:
    policy = Policy(rate_per_hour=3600 * 100, burst=10)
    with device_with(tmp_path, policy=policy) as device:
        port = device.boot()
        with serving(port, socket=tmp_path / "labels") as service:
            waits: list[float] = []
            patience = Patience(longest_s=5, waiting=waits.append)
            url = f"http://127.0.0.1:{service.address[1]}"  # type: ignore[index]
            with (
                SocketOracle(tmp_path / "labels", patience=patience) as behind,
                HttpOracle(url, patience=patience) as over,
            ):
                for oracle in (behind, over, PortOracle(port, patience=patience)):
                    assert oracle.batch == 10
                    waits.clear()
                    for _ in range(2):
                        oracle.labels(frames(10))
                    assert waits
                    assert oracle.asked == 20
            hasty = PortOracle(port)
            with pytest.raises(LimitError) as limit:
                [hasty.labels(frames(10)) for _ in range(3)]
            assert limit.value.retry_after_s is not None


def test_patience_is_bounded_whatever_the_device_says() -> None:
    told: list[float] = []

    def never() -> None:
        raise LimitError("not now", retry_after_s=0.0)

    began = time.monotonic()
    with pytest.raises(LimitError):
        Patience(longest_s=0.1, waiting=told.append).asked(never)
    assert time.monotonic() - began < 2
    assert 1 <= len(told) <= 11
    for bad in (-1.0, float("inf"), float("nan")):
        with pytest.raises(MisuseError):
            Patience(longest_s=bad)


def test_a_device_that_refuses_slowly_spends_patience() -> None:
    asked: list[None] = []

    def slow() -> None:
        asked.append(None)
        time.sleep(0.2)
        raise LimitError("not now", retry_after_s=0.0)

    with pytest.raises(LimitError):
        Patience(longest_s=0.3).asked(slow)
    assert len(asked) <= 3


def test_what_may_have_been_charged_is_counted_and_not_asked_again(port: LabelPort, tmp_path: Path) -> None:
    faulty = Faulty(port)
    with serving(faulty, socket=tmp_path / "labels") as service:
        url = f"http://127.0.0.1:{service.address[1]}"  # type: ignore[index]
        patience = Patience(longest_s=30)
        with SocketOracle(tmp_path / "labels", patience=patience) as behind, HttpOracle(url, patience=patience) as over:
            for oracle in (behind, over, PortOracle(faulty, patience=patience)):
                faulty.error, faulty.asked = DeviceError("enclave is down"), []
                with pytest.raises(DeviceError):
                    oracle.labels(frames(3))
                assert faulty.asked == [3]
                assert oracle.asked == 3
                faulty.error = None
                assert np.array_equal(oracle.labels(frames(4)), port.classify_batch(frames(4)))
                assert oracle.asked == 7


def test_an_enclave_that_is_killed_is_not_asked_again(ways: dict[str, Oracle]) -> None:
    oracle = ways["isolated"]
    assert isinstance(oracle, PortOracle)
    enclave = oracle._port
    assert isinstance(enclave, Isolated)
    assert enclave.pid is not None
    expected, asked = oracle.labels(frames(5)), oracle.asked
    os.kill(enclave.pid, signal.SIGSTOP)  # so that the query is under way when it dies
    threading.Timer(0.3, os.kill, (enclave.pid, signal.SIGKILL)).start()
    with pytest.raises(DeviceError):
        oracle.labels(frames(5))
    assert oracle.asked == asked + 5
    assert np.array_equal(oracle.labels(frames(5)), expected)  # the supervisor started another


def test_a_server_that_restarts_is_found_again_with_nothing_lost(port: LabelPort, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with serving(port, socket=path) as first:
        number = first.address[1]  # type: ignore[index]
        behind, over = SocketOracle(path), HttpOracle(f"http://127.0.0.1:{number}")
        for oracle in (behind, over):
            oracle.labels(frames(2))
    for oracle in (behind, over):
        with pytest.raises(DeviceError):
            oracle.labels(frames(2))
        assert oracle.asked == 2
    with serving(port, socket=path, port=number), behind, over:
        for oracle in (behind, over):
            assert np.array_equal(oracle.labels(frames(2)), port.classify_batch(frames(2)))
            assert oracle.asked == 4


def test_names_that_are_none(tmp_path: Path) -> None:
    for wrong in (
        "",
        "device:",
        "camera7",
        "ftp://host/",
        "http://",
        "http://host:99999",
        "http://host:0",
        "http://a b:80",
        "http://a\x1b:80",
        "http://host:1/?classes=999999",
        "http://user:word@host",
        "http://host/a/b",
        "http://host:1/?classes=x",
        "http://host:1/?other=1",
        "http://host:1/copy#x",
        f"device:{tmp_path / 'nothing'}",
        "socket:" + "x" * 200,
        "socket:a\0b",
    ):
        with pytest.raises(MisuseError), open_oracle(wrong):
            pass
    for gone in ("http://127.0.0.1:1", f"socket:{tmp_path / 'nothing'}", "https://127.0.0.1:1"):
        with pytest.raises(DeviceError), open_oracle(gone):
            pass
    with pytest.raises(MisuseError), open_oracle("http://127.0.0.1:1", trust=Trust()):
        pass


def test_tls_is_checked(place: Path, port: LabelPort, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    server, client = ours.issue("localhost"), theirs.issue("red-team")
    tls = TlsFiles(certificate=server.certificate, key=server.key, client_ca=ours.certificate)
    with serving(port, tls=tls) as service:
        url = f"https://localhost:{service.address[1]}"  # type: ignore[index]
        for trust in (
            Trust(ca=theirs.certificate),
            Trust(ca=ours.certificate),  # no certificate of ours
            Trust(ca=ours.certificate, certificate=client.certificate, key=client.key),
        ):
            with pytest.raises(DeviceError):
                HttpOracle(url, trust=trust, timeout_s=10)
    for bad in (Trust(ca=tmp_path / "nothing"), Trust(key=client.key), Trust(certificate=client.key)):
        with pytest.raises(MisuseError):
            bad.context()


class Unsteady:
    """Answers by call, not by frame."""

    shape, dtype, classes, batch = SHAPE, "uint8", CLASSES, 64

    def __init__(self) -> None:
        self.calls = 0

    def labels(self, shown: NDArray[Any]) -> NDArray[np.int64]:
        self.calls += 1
        return np.full(len(shown), self.calls % 2, np.int64)


def test_the_check_finds_an_unsteady_device() -> None:
    found = check_oracle(Unsteady(), frames(10))
    assert not found.steady
    assert (found.again, found.alone) == (10, 5)
    with pytest.raises(RefusedError):
        found.require()
    with pytest.raises(MisuseError):
        check_oracle(Unsteady(), frames(2).astype(np.float32))
    with pytest.raises(MisuseError):
        check_oracle(Unsteady(), frames(2)[:0])
