"""An enclave that was taken over gives no more labels than the supervisor counted, and tells nothing by other ways."""

from __future__ import annotations

import contextlib
import dis
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.artefacts import frames
from tests.support.taken_over import other_code, patch
from tests.test_isolation import flashed
from variegate.isolation import launch, wire
from variegate.isolation.evidence_quota import BURST, PER_SECOND, EvidenceQuota
from variegate.isolation.host import Isolated
from variegate.isolation.policy import DevicePolicy
from variegate.isolation.wire import Kind
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError, VariegateError
from variegate.keys.manifest import Policy
from variegate.runtime.allowance import Allowance

BUDGET = 40
SHOWN = frames(3)
UNCOUNTED = (
    "runtime/allowance.py",
    ("tokens = self._refill(count)", "tokens = 0.0"),
    ("            self._reserve(count)\n", ""),
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: writes into another process's memory")

ASKING: dict[str, Callable[[Isolated], int]] = {
    "one": lambda port: len([port.classify(SHOWN[0])]),
    "batch": lambda port: len(port.classify_batch(SHOWN)),
    "receipt": lambda port: len(port.classify_with_receipt(SHOWN)[0]),
}


def spent(port: Isolated, ask: Callable[[Isolated], int], most: int = 4 * BUDGET) -> int:
    """Labels got until the device refuses."""
    got = 0
    try:
        while got < most:
            got += ask(port)
    except LimitError as error:
        assert error.message == "query budget is spent"  # noqa: PT017  the loop ends with it
    return got


@pytest.mark.parametrize("how", list(ASKING))
def test_code_that_does_not_count_answers_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(launch, "_OURS", other_code(tmp_path / "code", *UNCOUNTED))
    with flashed(tmp_path, policy=Policy(budget=BUDGET)) as (device, port):
        got = spent(port, ASKING[how])
        assert BUDGET - len(SHOWN) < got <= BUDGET
        assert got <= device.counter("budget.0") <= BUDGET
        assert port.status().remaining == BUDGET - got


def test_code_that_does_not_count_keeps_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_OURS", other_code(tmp_path / "code", *UNCOUNTED))
    with flashed(tmp_path, policy=Policy(rate_per_hour=1, burst=5)) as (_, port):
        with pytest.raises(LimitError, match="rate exceeded"):
            port.classify(SHOWN[0])
        with pytest.raises(LimitError, match="at once"):
            port.classify_batch(frames(6))


def test_restarts_of_code_that_does_not_count_gain_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_OURS", other_code(tmp_path / "code", *UNCOUNTED))
    got = 0
    with flashed(tmp_path, DevicePolicy(restarts=100), policy=Policy(budget=BUDGET)) as (device, port):
        for turn in range(4 * BUDGET):
            if turn % 10 == 9 and port.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(port.pid, signal.SIGKILL)
            try:
                got += len(port.classify_batch(SHOWN))
            except DeviceError:
                continue
            except LimitError:
                break
        assert 0 < got <= BUDGET
        assert device.counter("budget.0") <= BUDGET


@needs_root
def test_a_write_into_a_serving_enclave_gains_no_label(tmp_path: Path) -> None:
    """Root patches the very function that used to count: it returns at once."""
    code = Allowance._reserve.__code__
    back = bytes([dis.opmap["LOAD_CONST"], 0, dis.opmap["RETURN_VALUE"], 0])
    with flashed(tmp_path, policy=Policy(budget=BUDGET)) as (device, port):
        assert port.pid is not None
        assert patch(port.pid, code, back) > 0
        assert spent(port, ASKING["one"]) == BUDGET
        assert device.counter("budget.0") == BUDGET


CHILD, STATEMENTS = "isolation/child.py", "isolation/statements.py"
TEST = "self._enclave.self_test()\n"
TELLS = {
    "error": 'raise DeviceError("labels 1 2 3")',
    "hint": 'raise DeviceError("x", hint="labels 1 2 3")',
    "refusal": 'raise errors.RefusedError(errors.Refusal.MODEL, "labels 1 2 3")',
    "other refusal": 'raise errors.RefusedError(errors.Refusal.SEALED, "labels 1 2 3")',
    "limit": 'raise errors.LimitError("labels 1 2 3", retry_after_s=123.0)',
    "misuse": 'raise errors.MisuseError("labels 1 2 3")',
    "done": 'return wire.pack(Kind.DONE, "labels 1 2 3")',
    "log": 'self._below.record("enclave", "labels 1 2 3")',
}


@pytest.mark.parametrize("how", TELLS)
def test_no_word_of_a_serving_enclave_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    told = f"from variegate.keys import errors; {TELLS[how]}\n"
    monkeypatch.setattr(launch, "_OURS", other_code(tmp_path / "code", CHILD, (TEST, told)))
    with flashed(tmp_path) as (device, port):
        error: VariegateError | None = None
        try:
            port.self_test()
        except VariegateError as raised:
            error = raised
        assert (error is None) == (how == "log")
        assert not isinstance(error, LimitError | MisuseError)
        assert "labels 1" not in f"{error!r} {error and error.hint}" + "".join(device.log())


TOKENS = [
    ("receipt, label", "labels=receipt.labels_of(labels)", "labels=(7, *receipt.labels_of(labels))"),
    ("receipt, frames", "receipt.frames_digest(frames)", "receipt.frames_digest(frames[::-1])"),
    ("receipt, time", "time_s=int(now)", "time_s=int(now) + 1"),
    ("receipt, number", "self._receipts += 1", "self._receipts += 2"),
    ("evidence, budget", "budget_used=used", "budget_used=used + 3"),
    ("evidence, time", "issued_at=int(now)", "issued_at=int(now) - 1"),
    ("evidence, nonce", "nonce=nonce,\n            ueid", 'nonce=b"labels 1",\n            ueid'),
    ("evidence, reason", "protections=self._protections,", "protections=self._protections[1:],"),
]


@pytest.mark.parametrize(("name", "old", "new"), TOKENS, ids=[case[0] for case in TOKENS])
def test_a_token_says_what_was_asked_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
) -> None:
    # The enclave runs other code than this process, which knows what should come.
    monkeypatch.setattr(launch, "_OURS", other_code(tmp_path / "code", STATEMENTS, (old, new)))
    ask = Isolated.classify_with_receipt if name.startswith("receipt") else Isolated.evidence
    with flashed(tmp_path) as (_, port), pytest.raises(DeviceError, match="answers something else"):
        ask(port, SHOWN if name.startswith("receipt") else bytes(16))  # type: ignore[arg-type]


def test_evidence_that_carries_labels_in_its_signature_does_not_come_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = "return wire.pack(Kind.DONE, self._says.evidence(nonce))"
    told = "return wire.pack(Kind.DONE, self._says.evidence(nonce)[:-64] + bytes(range(64)))"
    monkeypatch.setattr(launch, "_OURS", other_code(tmp_path / "code", CHILD, (honest, told)))
    with flashed(tmp_path, policy=Policy(budget=1)) as (device, port):
        for _ in range(2):
            with pytest.raises(DeviceError, match="answers something else"):
                port.evidence(bytes(8))
        assert sum("answers something else" in line for line in device.log()) == 2  # each ended an enclave


def test_evidence_is_bounded_whatever_enclaves_come_and_go(tmp_path: Path) -> None:
    with flashed(tmp_path) as (_, port):
        given, began, wait = 0, time.monotonic(), None
        while wait is None:
            assert given <= BURST + 1 + (time.monotonic() - began) * PER_SECOND
            if given == BURST // 2 and port.pid is not None:
                os.kill(port.pid, signal.SIGKILL)
            try:
                port.evidence(given.to_bytes(8, "big"))
            except DeviceError:  # the enclave that was killed
                given += 1
            except LimitError as error:
                wait = error.retry_after_s
            else:
                given += 1
        assert given >= BURST
        assert 0 < wait <= 1.1 / PER_SECOND
        port.classify(SHOWN[0])  # labels are counted by themselves


def test_the_ration_of_evidence_fills_again_up_to_its_burst() -> None:
    now = 0.0
    ration = EvidenceQuota(lambda: now)
    for wait in (0.0, 10.0 * BURST):
        now += wait / PER_SECOND
        for _ in range(BURST):
            ration.take()
        with pytest.raises(LimitError) as limited:
            ration.take()
    assert limited.value.retry_after_s is not None
    now += limited.value.retry_after_s
    ration.take()
    with pytest.raises(LimitError):
        ration.take()


REFUSED = {
    "input": 'raise errors.RefusedError(errors.Refusal.INPUT, "x")',
    "expired": 'raise errors.RefusedError(errors.Refusal.EXPIRED, "x")',
    "rolled back": 'raise errors.RefusedError(errors.Refusal.ROLLED_BACK, "x")',
    "model": 'raise errors.RefusedError(errors.Refusal.MODEL, "x")',
    "artefact": 'raise errors.RefusedError(errors.Refusal.ARTEFACT, "x")',
    "memory": 'raise DeviceError("x")',
}
UNCHARGED: dict[str, tuple[str, Callable[[Isolated], object]]] = {
    "status": ("            case Kind.PING, []:\n", lambda port: port.status()),
    "evidence": (
        "                self._below.update(time_ns / wire.NS, security, used)\n",
        lambda port: port.evidence(bytes(8)),
    ),
    "self-test": ("            case Kind.TEST, []:\n", lambda port: port.self_test()),
}


@pytest.mark.parametrize("asked", list(UNCHARGED))
def test_what_is_not_charged_gets_one_answer_or_ends_the_enclave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """Which refusal it is would tell a label each time."""
    line, ask = UNCHARGED[asked]
    got = set()
    for name, refused in REFUSED.items():
        told = f"{line}                from variegate.keys import errors; {refused}\n"
        with monkeypatch.context() as patched:
            patched.setattr(launch, "_OURS", other_code(tmp_path / name / "code", CHILD, (line, told)))
            with flashed(tmp_path / name, DevicePolicy(restarts=0)) as (_, port):
                with pytest.raises(VariegateError) as raised:
                    ask(port)
                got.add((type(raised.value), raised.value.message))
                with pytest.raises(DeviceError, match="starts again in"):
                    port.status()
    assert len(got) == (2 if asked == "self-test" else 1), got


def test_lines_that_a_serving_enclave_would_log_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number would tell something."""
    line = "            case Kind.PING, []:\n"
    told = f'{line}                self._below.record("refused", "x")\n'
    monkeypatch.setattr(launch, "_OURS", other_code(tmp_path / "code", CHILD, (line, told)))
    with flashed(tmp_path) as (device, port):
        before = len(device.log())
        port.status()
        assert len(device.log()) == before


@pytest.mark.parametrize(
    "call", ["challenge()", 'release(b"labels", b"1 2 3")', 'reserve("budget.0", 1, 1, 40)', 'call("counter", "boots")']
)
def test_a_serving_enclave_has_no_way_to_the_broker_or_a_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    class Way:
        asked = 0

        def challenge(self) -> bytes:
            self.asked += 1
            return bytes(16)

        def release(self, token: bytes, envelope: bytes) -> bytes:
            self.asked += 1
            return token + envelope

    monkeypatch.setattr(launch, "_OURS", other_code(tmp_path / "code", CHILD, (TEST, f"self._below.{call}\n")))
    with flashed(tmp_path, policy=Policy(budget=BUDGET)) as (device, port):
        device.broker = way = Way()
        used = device.counter("budget.0")
        with pytest.raises(DeviceError):
            port.self_test()
        assert way.asked == 0
        assert device.counter("budget.0") == used


def test_a_question_over_a_duplicate_of_the_socket_is_noticed(tmp_path: Path) -> None:
    """A thief who holds the supervisor's end asks; the supervisor's next query ends the enclave."""
    with flashed(tmp_path) as (device, port):
        port.classify(SHOWN[0])
        first, process = port.pid, port._keeper.process
        assert process is not None
        stolen = wire.QUERY_LAYOUT.pack(Kind.QUERY, port._query + 1, time.time(), 0, 1, False)
        assert process.ask(stolen, None, 20.0)[0] == Kind.LABELS
        with pytest.raises(DeviceError, match="no label"):
            port.classify(SHOWN[0])
        assert port.classify(SHOWN[0]) >= 0
        assert port.pid != first
        assert any("stopped" in line for line in device.log())


def test_what_is_refused_before_it_is_counted_costs_nothing(tmp_path: Path) -> None:
    with flashed(tmp_path, policy=Policy(budget=BUDGET)) as (device, port):
        with pytest.raises(RefusedError) as refused:
            port.classify_batch(SHOWN[:0])
        assert refused.value.refusal == Refusal.INPUT
        with pytest.raises(LimitError):
            port.classify_batch(frames(BUDGET + 1))
        assert device.counter("budget.0") == 0
        assert port.status().remaining == BUDGET
