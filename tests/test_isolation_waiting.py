"""Waiting awake: it finds what comes, gives up in time, is left out where it is in vain, and changes no time limit."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.artefacts import frames
from tests.test_isolation import flashed
from variegate.isolation import syscalls, wire
from variegate.isolation.process import Process
from variegate.isolation.waiting import Pace, Watch
from variegate.isolation.wire import Kind, Lost
from variegate.runtime.limits import LIMITS

TWO, ONE = (lambda _pid: {0, 1}), (lambda _pid: {0})


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends, on a machine with two cores."""
    monkeypatch.setattr(os, "sched_getaffinity", TWO)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def timed(call: Callable[[], object]) -> tuple[object, float]:
    start = time.monotonic()
    return call(), time.monotonic() - start


def later(seconds: float, call: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


class Wired(Process):
    """A process that is the other end of a socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pace = Pace(Watch(channel))

    def learn(self, count: int, seconds: float) -> None:
        for _ in range(100):
            self._pace.took(count, seconds)


def test_what_has_come_is_found_at_once_and_so_is_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    found, took = timed(lambda: Watch(ours).look(5.0))
    assert found is True
    assert took < 1
    assert ours.recv(10) == b"x"  # looking takes nothing away
    theirs.close()
    assert Watch(ours).look(5.0, after=5.0) is True


def test_looking_ends_in_time_and_is_left_out_ever_longer_while_in_vain(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    watch = Watch(pair[0])
    looked = []
    for turn in range(20):
        found, took = timed(lambda: watch.look(0.02, after=0.01))
        assert found is False
        assert took < 1
        if took > 0.009:
            looked.append(turn)
    assert looked == [0, 2, 6, 14]


def test_looking_is_taken_up_again_when_it_finds_something(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    watch = Watch(ours)
    for _ in range(600):  # left out 255 times in a row by now, and again a first time
        watch.look(0.0)
    theirs.send(b"x")
    found = [watch.look(1.0) for _ in range(5000)]
    assert found.count(False) > 200
    assert sum(found[-100:]) > 50  # a busy machine interrupts some


def test_with_one_core_nobody_looks(pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", ONE)
    pair[1].send(b"x")
    watch = Watch(pair[0])
    assert watch.look(5.0) is False
    pair[0].recv(10)
    assert timed(lambda: watch.look(5.0, after=5.0))[1] < 1


def test_sleeping_counts_less_than_milliseconds(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    took = min(timed(lambda: syscalls.readable_within(ours.fileno(), 200e-6))[1] for _ in range(50))
    assert 200e-6 <= took < 900e-6
    assert not syscalls.readable_within(ours.fileno(), 0.0)
    theirs.send(b"x")
    assert syscalls.readable_within(ours.fileno(), 1.5)


def test_a_pace_is_learnt_for_each_number_of_frames_and_forgets_what_was_slow(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pace = Pace(Watch(pair[0]))
    assert timed(lambda: pace.expect(1, 30.0))[1] < 0.02  # nothing is known: the caller sleeps
    for _ in range(50):
        pace.took(1, 0.05)
    assert timed(lambda: pace.expect(2, 30.0))[1] < 0.02
    assert timed(lambda: pace.expect(0, 30.0))[1] < 0.02
    assert timed(lambda: pace.expect(1, 0.05))[1] < 0.02  # no longer than there is time
    assert timed(lambda: pace.expect(1, 30.0))[1] >= 0.05
    for frame_count in (0, LIMITS.slice + 1):
        pace.took(frame_count, 0.05)
        assert frame_count not in pace._usual
    for _ in range(6):
        pace.took(1, 0.001)
    assert pace._usual[1] < 0.002


@pytest.mark.parametrize("usual", [0.0001, 0.02, 5.0])
def test_an_answer_that_is_late_or_early_arrives(pair: tuple[socket.socket, socket.socket], usual: float) -> None:
    ours, theirs = pair
    process = Wired(ours)
    process.learn(1, usual)
    for delay in (0.0, 0.01, 0.1):
        start = time.monotonic()
        timer = later(delay, lambda: theirs.send(bytes([Kind.LABELS]) + b"labels"))
        assert process.ask(b"\x02", None, 20.0, frames=1) == bytes([Kind.LABELS]) + b"labels"
        assert delay <= time.monotonic() - start < delay + 1
        timer.join()


@pytest.mark.parametrize("usual", [0.0001, 0.29, 5.0])
def test_a_hang_is_noticed_when_the_time_is_over(pair: tuple[socket.socket, socket.socket], usual: float) -> None:
    process = Wired(pair[0])
    process.learn(1, usual)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        process.ask(b"\x02", None, 0.3, frames=1)
    assert 0.3 <= time.monotonic() - start < 1


def test_an_enclave_that_only_calls_hangs_too(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    process = Wired(ours)
    process.learn(1, 0.001)
    platform = type("Clock", (), {"challenge": lambda _self: b"3"})()
    over = threading.Event()

    def call_on() -> None:
        theirs.recv(10)
        while not over.is_set():
            theirs.send(wire.pack(Kind.CALL, "challenge", []))
            assert wire.unpack(theirs.recv(100)) == (Kind.ANSWER, [b"3"])
            time.sleep(0.02)

    thread = threading.Thread(target=call_on)
    thread.start()
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        process.ask(b"\x02", platform, 0.4, frames=1)
    assert 0.4 <= time.monotonic() - start < 1.5
    over.set()
    wire.send(ours, wire.pack(Kind.ANSWER, b"3"))  # in case it has called once more
    thread.join()


def test_an_end_while_the_answer_is_awaited_is_noticed_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    process = Wired(ours)
    process.learn(1, 5.0)
    timer = later(0.05, lambda: theirs.shutdown(socket.SHUT_RDWR))
    start = time.monotonic()
    with pytest.raises(Lost):
        process.ask(b"\x02", None, 20.0, frames=1)
    timer.join()
    assert time.monotonic() - start < 2


def test_an_enclave_that_nobody_asks_sleeps(tmp_path: Path) -> None:
    shown = frames(1)[0]

    def ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    with flashed(tmp_path) as (_, port):
        assert port.pid is not None
        labels = {port.classify(shown) for _ in range(300)}
        assert len(labels) == 1
        time.sleep(0.05)
        before = ticks(port.pid)
        time.sleep(1.0)
        assert ticks(port.pid) - before <= os.sysconf("SC_CLK_TCK") // 20
