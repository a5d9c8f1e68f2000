"""The enclave: labels only, the policy to the letter, one answer to whatever is wrong."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from testbed.artefacts import CLASS, SHAPE, MemorySigner, frames, seal_for, tiny_payload
from variegate.device_sim.device import Device
from variegate.keys.artefact import Artefact, Payload
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError
from variegate.keys.manifest import Policy
from variegate.runtime import Enclave
from variegate.runtime.allowance import Allowance
from variegate.runtime.limits import LIMITS

SIGNER = MemorySigner()


def as_float(graph: bytes) -> bytes:
    """The tiny graph with float32 frames."""
    model = onnx.load_model_from_string(graph)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return bytes(model.SerializeToString())


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with Device.create(tmp_path / "device", CLASS, SIGNER.root) as device:
        yield device


def test_a_copy_answers_with_integers(device: Device) -> None:
    with Enclave.open(seal_for(device.identity, SIGNER), device) as enclave:
        enclave.self_test()
        shown = frames(200)
        labels = enclave.classify_batch(shown)
        assert labels.dtype == np.int64
        assert labels.shape == (200,)
        one = enclave.classify(shown[3])
        assert type(one) is int
        assert one == labels[3]
        status = enclave.status()
        assert status.answered == 201
        assert status.remaining is None
        states = {p.name: p.state for p in status.protections}
        assert states["signatures"] == "on"
        assert states["isolation"] == "off"
    with pytest.raises(MisuseError, match="closed"):
        enclave.classify(shown[0])


@pytest.mark.parametrize(
    "wrong",
    [
        frames(1).astype(np.float32),
        frames(1).astype(np.int8),
        frames(1)[:, :, :, :3],
        frames(1)[0],
        frames(1)[:0],
        np.zeros((LIMITS.batch + 1, *SHAPE), np.uint8),
        [[1, 2]],
        None,
    ],
    ids=["float", "int8", "narrow", "rank", "empty", "many", "list", "none"],
)
def test_wrong_frames_are_refused_and_cost_nothing(device: Device, wrong: Any) -> None:
    with Enclave.open(seal_for(device.identity, SIGNER, policy=Policy(budget=10)), device) as enclave:
        with pytest.raises(RefusedError) as refused:
            enclave.classify_batch(wrong)
        assert refused.value.refusal is Refusal.INPUT
        assert enclave.status().remaining == 10


def test_frames_in_any_memory_order_are_answered_alike(device: Device) -> None:
    with Enclave.open(seal_for(device.identity, SIGNER), device) as enclave:
        shown = frames(5)
        turned = np.asfortranarray(shown)
        np.testing.assert_array_equal(enclave.classify_batch(turned), enclave.classify_batch(shown))
        np.testing.assert_array_equal(enclave.classify_batch(shown[::-1]), enclave.classify_batch(shown)[::-1])


def test_the_budget_is_spent_to_the_last_and_never_beyond(device: Device) -> None:
    artefact = seal_for(device.identity, SIGNER, policy=Policy(budget=7))
    with Enclave.open(artefact, device) as enclave:
        enclave.classify_batch(frames(5))
        with pytest.raises(LimitError):
            enclave.classify_batch(frames(3))
        assert enclave.status().remaining == 2
        enclave.classify_batch(frames(2))
        with pytest.raises(LimitError) as spent:
            enclave.classify(frames(1)[0])
        assert spent.value.retry_after_s is None
    with Enclave.open(artefact, device) as enclave, pytest.raises(LimitError):
        enclave.classify(frames(1)[0])


def test_a_restart_loses_what_was_reserved_and_gains_nothing(device: Device) -> None:
    budget = 64 * 100
    artefact = seal_for(device.identity, SIGNER, policy=Policy(budget=budget))
    for _ in range(5):
        with Enclave.open(artefact, device) as enclave:
            for _ in range(4):  # blocks of 1, 2 and 4: seven reserved, four answered
                enclave.classify(frames(1)[0])
    with Enclave.open(artefact, device) as enclave:
        assert enclave.status().remaining == budget - 5 * 7


def test_threads_share_one_budget(device: Device) -> None:
    artefact = seal_for(device.identity, SIGNER, policy=Policy(budget=500))
    answered: list[int] = []
    shown = frames(1)[0]

    def drive(enclave: Enclave) -> None:
        for _ in range(200):
            try:
                enclave.classify(shown)
            except LimitError:
                return
            answered.append(1)

    with Enclave.open(artefact, device) as enclave:
        threads = [threading.Thread(target=drive, args=(enclave,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answered) == 500
    assert enclave.status().answered == 500


class Liar(np.ndarray):
    """An array that says it is one frame, and breaks when it is indexed."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: Any) -> Any:
        raise KeyError(key)


def test_a_batch_is_charged_for_what_it_is_not_for_what_it_says(device: Device) -> None:
    with Enclave.open(seal_for(device.identity, SIGNER, policy=Policy(budget=10)), device) as enclave:
        with pytest.raises(LimitError):
            enclave.classify_batch(frames(50).view(Liar))
        assert enclave.classify(frames(1)[0].view(Liar)) == enclave.classify(frames(1)[0])
        assert enclave.status().answered == 2


def test_values_under_a_mask_are_seen(device: Device) -> None:
    tiny = tiny_payload()
    canaries = (frames(2) / np.float32(255)).tobytes()
    payload = Payload(tiny.tensors, canaries, as_float(bytes(tiny.graph)), tiny.constants)
    with Enclave.open(seal_for(device.identity, SIGNER, payload=payload, dtype="float32"), device) as enclave:
        values = np.zeros(SHAPE, np.float32)
        values[0, 0, 0] = 1e9
        with pytest.raises(RefusedError) as refused:
            enclave.classify(np.ma.masked_array(values, values > 1))
        assert refused.value.refusal is Refusal.INPUT


def test_a_fork_cannot_answer_what_its_parent_reserved(device: Device) -> None:
    with Enclave.open(seal_for(device.identity, SIGNER, policy=Policy(budget=6400)), device) as enclave:
        enclave.classify_batch(frames(40))
        child = os.fork()
        if child == 0:
            try:
                enclave.classify(frames(1)[0])
            except DeviceError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        enclave.classify(frames(1)[0])


def test_a_short_session_loses_about_what_it_used(device: Device) -> None:
    artefact = seal_for(device.identity, SIGNER, policy=Policy(budget=64 * 1000))
    for _ in range(20):
        with Enclave.open(artefact, device) as enclave:
            enclave.classify(frames(1)[0])
    with Enclave.open(artefact, device) as enclave:
        assert enclave.status().remaining == 64 * 1000 - 20


def test_enclaves_of_one_device_share_its_rate(device: Device) -> None:
    policy = Policy(rate_per_hour=1, burst=2)
    first, second = (Allowance(policy, 0, device) for _ in range(2))
    first._bucket.tokens = 2.0
    second.take(2)
    with pytest.raises(LimitError):
        first.take(1)


def test_a_running_copy_stops_once_a_newer_one_is_confirmed(device: Device) -> None:
    with Enclave.open(seal_for(device.identity, SIGNER, security_counter=1), device) as enclave:
        enclave.classify(frames(1)[0])
        device.advance("security", 2)
        with pytest.raises(RefusedError) as refused:
            enclave.classify(frames(1)[0])
        assert refused.value.refusal is Refusal.ROLLED_BACK


def test_a_closed_enclave_spends_nothing(device: Device) -> None:
    enclave = Enclave.open(seal_for(device.identity, SIGNER, policy=Policy(budget=5)), device)
    enclave.close()
    with pytest.raises(MisuseError):
        enclave.classify(frames(1)[0])
    assert device.counter("budget.0") == 0


def test_a_graph_cannot_read_the_working_folder(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An external initialiser that the recipe does not supply must not come from a file."""
    tiny = tiny_payload()
    (tmp_path / "k").write_bytes(np.ones((48, 10), np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    payload = Payload(tiny.tensors[:1], tiny.canaries, tiny.graph, tiny.constants)
    with pytest.raises(RefusedError):
        Enclave.open(seal_for(device.identity, SIGNER, payload=payload, canaries=bytes(32)), device)
    assert Refusal.MODEL in device.log()[-1]


def test_two_enclaves_of_one_device_share_one_budget(device: Device) -> None:
    artefact = seal_for(device.identity, SIGNER, policy=Policy(budget=10))
    answered = 0
    with Enclave.open(artefact, device) as first, Enclave.open(artefact, device) as second:
        for _ in range(10):
            for enclave in (first, second):
                try:
                    enclave.classify(frames(1)[0])
                except LimitError:
                    continue
                answered += 1
    assert answered == 10


def test_the_rate_starts_empty_fills_and_says_when_to_come_back(device: Device) -> None:
    clock = [0.0]
    policy = Policy(rate_per_hour=3600, burst=3)
    allowance = Allowance(policy, 0, device, clock=lambda: clock[0])
    with pytest.raises(LimitError) as early:
        allowance.take(1)
    assert early.value.retry_after_s == pytest.approx(1, abs=0.01)
    clock[0] += 100
    allowance.take(3)
    with pytest.raises(LimitError):
        allowance.take(1)
    clock[0] += 1.0
    allowance.take(1)
    with pytest.raises(LimitError) as never:
        allowance.take(4)
    assert never.value.retry_after_s is None


def test_a_refused_rate_spends_no_budget(device: Device) -> None:
    allowance = Allowance(Policy(budget=5, rate_per_hour=1, burst=1), 3, device, clock=lambda: 0.0)
    with pytest.raises(LimitError):
        allowance.take(1)
    assert allowance.remaining == 5
    assert device.counter("budget.3") == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ueid": b"\x01" + bytes(32)}, Refusal.WRONG_DEVICE),
        ({"device_class": "other"}, Refusal.WRONG_CLASS),
        ({"not_after": 1}, Refusal.EXPIRED),
        ({"measurements": {"runtime": bytes(32)}}, Refusal.SELF_TEST),
        ({"classes": 10, "shape": (3, 4, 5)}, Refusal.MODEL),
        ({"dtype": "float32"}, Refusal.MODEL),
    ],
    ids=str,
)
def test_every_refusal_sounds_the_same_outside(device: Device, changes: dict[str, Any], reason: Refusal) -> None:
    artefact = seal_for(device.identity, SIGNER, canaries=bytes(32), **changes)
    with pytest.raises(RefusedError) as refused:
        Enclave.open(artefact, device)
    assert (refused.value.refusal, refused.value.message) == (Refusal.ARTEFACT, "artefact refused")
    assert refused.value.__cause__ is refused.value.__context__ is None
    assert reason in device.log()[-1]


def test_a_counter_behind_the_devices_is_a_rollback(device: Device) -> None:
    artefact = seal_for(device.identity, SIGNER, security_counter=4)
    device.advance("security", 5)
    with pytest.raises(RefusedError):
        Enclave.open(artefact, device)
    assert Refusal.ROLLED_BACK in device.log()[-1]


def test_an_opened_copy_expires_while_it_serves(tmp_path: Path) -> None:
    Device.create(tmp_path / "device", CLASS, SIGNER.root).close()
    clock = [1000.0]
    with Device.open(tmp_path / "device", clock=lambda: clock[0]) as device:
        artefact = seal_for(device.identity, SIGNER, not_after=1010, policy=Policy(grace_s=5))
        with Enclave.open(artefact, device) as enclave:
            clock[0] = 1015.0
            enclave.classify(frames(1)[0])
            clock[0] = 1015.1
            with pytest.raises(RefusedError) as refused:
                enclave.classify(frames(1)[0])
            assert refused.value.refusal is Refusal.EXPIRED


def test_a_wrong_canary_digest_fails_the_self_test(device: Device) -> None:
    with Enclave.open(seal_for(device.identity, SIGNER, canaries=bytes(32)), device) as enclave:
        with pytest.raises(RefusedError):
            enclave.self_test()
        assert Refusal.SELF_TEST in device.log()[-1]


def test_a_payload_without_canaries_fails_the_self_test(device: Device) -> None:
    tiny = tiny_payload()
    payload = Payload(tiny.tensors, b"", tiny.graph, tiny.constants)
    with (
        Enclave.open(seal_for(device.identity, SIGNER, payload=payload, canaries=bytes(32)), device) as enclave,
        pytest.raises(RefusedError),
    ):
        enclave.self_test()


@pytest.mark.parametrize("graph", [b"not onnx", b"", tiny_payload().graph[:-40]])
def test_a_signed_graph_that_does_not_load_is_refused(device: Device, graph: bytes) -> None:
    tiny = tiny_payload()
    payload = Payload(tiny.tensors, b"", graph or b"\0", tiny.constants)
    with pytest.raises(RefusedError):
        Enclave.open(seal_for(device.identity, SIGNER, payload=payload, canaries=bytes(32)), device)
    assert Refusal.MODEL in device.log()[-1]


@pytest.mark.parametrize("data", [b"", b"vgcopy\x00\x01", b"vgcopy\x00\x01\xff\xff\xff\xff" + bytes(50), bytes(100)])
def test_files_that_are_no_artefact(data: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        Artefact.from_bytes(data)
    assert refused.value.refusal is Refusal.MALFORMED


def test_a_float_copy_takes_floats_from_zero_to_one_only(device: Device) -> None:
    tiny = tiny_payload()
    canaries = (frames(2) / np.float32(255)).tobytes()
    payload = Payload(tiny.tensors, canaries, as_float(bytes(tiny.graph)), tiny.constants)
    with Enclave.open(seal_for(device.identity, SIGNER, payload=payload, dtype="float32"), device) as enclave:
        enclave.self_test()
        good = frames(2) / np.float32(255)
        enclave.classify_batch(good)
        for bad in (np.nan, np.inf, -0.01, 1.01):
            frame = good[0].copy()
            frame[0, 0, 0] = bad
            with pytest.raises(RefusedError) as refused:
                enclave.classify(frame)
            assert refused.value.refusal is Refusal.INPUT


def test_opening_writes_no_plaintext(device: Device, tmp_path: Path) -> None:
    payload = tiny_payload()
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    start = time.time()
    with Enclave.open(seal_for(device.identity, SIGNER, payload=payload), device) as enclave:
        enclave.classify_batch(frames(3))
        after = {p for p in tmp_path.rglob("*") if p.is_file()}
    window = payload.constants["w"].tobytes()[200:232]
    for path in after | before:
        assert window not in path.read_bytes()
    for path in Path(tempfile.gettempdir()).glob("*"):
        if path.is_file() and path.stat().st_mtime >= start and path.stat().st_size < 1 << 24:
            assert window not in path.read_bytes()
