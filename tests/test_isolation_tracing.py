"""The supervisor's hold on the enclave: nobody else gets in, nothing is lost, and both end together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.children import Child, Zygote
from variegate.isolation.tracing import PtraceGuard
from variegate.keys.errors import DeviceError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: attaches as root does")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as started:
        yield started


SUPERVISOR = """
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if pid == 0:
    ours.close()
    theirs.recv(1)
    {enclave}
    os._exit(0)
theirs.close()
tracer = PtraceGuard(pid)
say(pid, plain([tracer.protection])[0])
"""


def supervise(zygote: Zygote, enclave: str, rest: str) -> tuple[Child, int]:
    """Starts a supervisor that holds an enclave; the code of both."""
    child = zygote.start(SUPERVISOR.format(enclave=enclave) + rest)
    said = child.hear()
    assert isinstance(said, list)
    pid, protection = said
    assert protection == ["ptrace", "on", "held by the supervisor"]
    return child, int(pid)


END = "ours.send(b'x')\nsay(tracer.exited.wait(20), tracer.status)"


@pytest.mark.parametrize(
    ("enclave", "status", "words"),
    [
        ("os._exit(7)", 7, "exit status 7"),
        ("pass", 0, "exit status 0"),
        ("os.kill(os.getpid(), 11)", -11, "SIGSEGV"),
        ("os.abort()", -6, "SIGABRT"),
        ("os.kill(os.getpid(), 40)", -40, "signal 40"),
    ],
)
def test_its_end_is_reported(zygote: Zygote, enclave: str, status: int, words: str) -> None:
    child, _ = supervise(zygote, enclave, f"say(tracer.how_it_ended)\n{END}\nsay(tracer.how_it_ended)")
    assert child.hear() == "still running"
    assert child.hear() == [True, status]
    assert child.hear() == words
    assert child.ended() == 0


@needs_root
@pytest.mark.parametrize("request_", [16, 0x4206])
def test_nobody_else_attaches_while_it_is_held(zygote: Zygote, request_: int) -> None:
    attack = "say(tried(lambda: syscalls.ptrace({request}, {pid})))"
    held, pid = supervise(zygote, "time.sleep(60)", "wait()\ntracer.kill()\nsay(tracer.exited.wait(20))")
    assert zygote.run(attack.format(request=request_, pid=pid))[0] == "EPERM"
    held.tell()
    assert held.hear() is True
    held.ended()
    free = zygote.start("say(1)\nwait()")
    assert free.hear() == 1
    assert zygote.run(attack.format(request=request_, pid=free.pid))[0] is None
    os.kill(free.pid, signal.SIGCONT)  # an attach stops it
    free.tell()
    assert free.ended() == 0


def test_what_it_forks_is_held_too(zygote: Zygote) -> None:
    """The loader: traced by the supervisor, waited for by the enclave."""
    enclave = (
        "loader = os.fork()\n"
        "    if loader == 0:\n"
        "        lines = lambda pid: open(f'/proc/{pid}/status').read().split()\n"
        "        field = lambda pid, name: lines(pid)[lines(pid).index(name) + 1]\n"
        "        say(int(field(field('self', 'TracerPid:'), 'Tgid:')))\n"
        "        os._exit(9)\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(loader, 0)[1]) + 1)"
    )
    child, _ = supervise(zygote, enclave, END)
    assert child.hear() == child.pid
    assert child.hear() == [True, 10]


def test_what_it_forked_does_not_outlive_it(zygote: Zygote) -> None:
    enclave = "left = os.fork()\n    if left == 0:\n        time.sleep(60)\n    say(left)\n    os._exit(0)"
    child, _ = supervise(zygote, enclave, END + "\nwait()")
    left = child.hear()
    assert child.hear() == [True, 0]
    assert gone(int(str(left)))
    child.tell()
    child.ended()


def test_its_threads_go_on(zygote: Zygote) -> None:
    enclave = (
        "done = []\n"
        "    threads = [threading.Thread(target=done.append, args=(i,)) for i in range(20)]\n"
        "    [t.start() for t in threads], [t.join() for t in threads]\n"
        "    os._exit(len(done))"
    )
    child, _ = supervise(zygote, enclave, END)
    assert child.hear() == [True, 20]


def test_kill_ends_it_whatever_it_does(zygote: Zygote) -> None:
    rest = """
ours.send(b"x")
time.sleep(0.05)
if wait() == "stopped":
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.05)
tracer.kill()
say(tracer.exited.wait(20), tracer.status)
tracer.kill()
say(repr(tracer))
"""
    for state in ("running", "stopped"):
        child, pid = supervise(zygote, "signal.signal(15, signal.SIG_IGN)\n    while True: pass", rest)
        child.tell(state)
        assert child.hear() == [True, -9]
        assert child.hear() == f"PtraceGuard(pid={pid}, on, status=-9)"
        assert child.ended() == 0


def test_a_kill_from_elsewhere_is_noticed(zygote: Zygote) -> None:
    child, pid = supervise(zygote, "time.sleep(60)", "say(tracer.exited.wait(20), tracer.status)")
    os.kill(pid, signal.SIGKILL)
    assert child.hear() == [True, -9]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def gone(pid: int) -> bool:
    return eventually(lambda: not Path(f"/proc/{pid}").exists() or state_of(pid) == "Z")


def eventually(holds: object, seconds: float = 15.0) -> bool:
    assert callable(holds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return False


def test_stop_and_continue_work_as_without_a_tracer(zygote: Zygote) -> None:
    enclave = "while theirs.recv(64): theirs.send(b'alive')"
    child, pid = supervise(
        zygote,
        enclave,
        """
ours.send(b"x")
ours.settimeout(10)
while wait() == "ask":
    ours.send(b"?")
    say(ours.recv(64).decode())
ours.close()
say(tracer.exited.wait(20), tracer.status)
""",
    )
    for _ in range(3):
        os.kill(pid, signal.SIGSTOP)
        assert eventually(lambda: state_of(pid) == "t")
        time.sleep(0.02)
        assert state_of(pid) == "t"
        os.kill(pid, signal.SIGCONT)
        child.tell("ask")
        assert child.hear() == "alive"
    child.tell("end")
    assert child.hear() == [True, 0]


def test_many_signals_all_arrive(zygote: Zygote) -> None:
    enclave = (
        "count = [0]\n"
        "    signal.signal(signal.SIGUSR1, lambda *_: count.__setitem__(0, count[0] + 1))\n"
        "    theirs.send(b'ready')\n"
        "    for _ in range(500):\n"
        "        os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    while theirs.recv(1) != b'e': pass\n"
        "    os._exit(3 if count[0] >= 500 else 4)"
    )
    rest = """
ours.send(b"x")
ours.recv(10)
for _ in range(300):
    os.kill(pid, signal.SIGUSR1)
ours.send(b"e")
say(tracer.exited.wait(20), tracer.status)
"""
    child, _ = supervise(zygote, enclave, rest)
    assert child.hear() == [True, 3]


@pytest.mark.parametrize("how", ["SIGKILL", "return"])
def test_it_ends_with_its_supervisor(zygote: Zygote, how: str) -> None:
    child, pid = supervise(zygote, "time.sleep(60)", "ours.send(b'x')\nsay(1)\nwait()\nos._exit(0)")
    assert child.hear() == 1
    assert state_of(pid) != "Z"
    if how == "SIGKILL":
        os.kill(child.pid, signal.SIGKILL)
    else:
        child.tell()
    child.ended()
    assert gone(pid)


def test_other_children_of_the_supervisor_are_left_alone(zygote: Zygote) -> None:
    rest = """
other = os.fork()
if other == 0:
    os._exit(5)
time.sleep(0.05)
say(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
tracer.kill()
say(tracer.exited.wait(20))
"""
    child, _ = supervise(zygote, "time.sleep(60)", rest)
    assert child.hear() == 5
    assert child.hear() is True


def test_a_child_that_has_ended_before_is_reported(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        pid = os.fork()
        if pid == 0:
            os._exit(4)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        tracer = PtraceGuard(pid)
        say(tracer.exited.wait(20), tracer.status, tracer.protection.state.value)
        """
    )
    assert said == [True, 4, "unavailable"]


def test_where_ptrace_is_refused_it_waits_and_says_so(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        lockdown.no_new_privs()
        Filter(ALLOW).rule(fails_with(errno.EPERM), ["ptrace"]).load()
        statuses = []
        for end in ("exit", "kill"):
            pid = os.fork()
            if pid == 0:
                os._exit(6) if end == "exit" else time.sleep(60)
            tracer = PtraceGuard(pid)
            if end == "kill":
                tracer.kill()
            statuses.append([tracer.exited.wait(20), tracer.status])
        say(plain([tracer.protection])[0], statuses)
        """
    )
    assert said == [["ptrace", "unavailable", "seizing is refused: EPERM"], [[True, 6], [True, -9]]]


def test_for_debugging_it_is_waited_for_and_not_held(zygote: Zygote) -> None:
    child = zygote.start(
        """
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        tracer = PtraceGuard(pid, hold=False)
        say(pid, plain([tracer.protection])[0])
        wait()
        tracer.kill()
        say(tracer.exited.wait(20), tracer.status)
        """
    )
    said = child.hear()
    assert isinstance(said, list)
    pid, protection = said
    assert protection == ["ptrace", "off", "debugging is asked for"]
    assert "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()
    child.tell()
    assert child.hear() == [True, -9]


def test_only_children_are_taken() -> None:
    for pid in (os.getppid(), 1 << 30):
        with pytest.raises(DeviceError, match="not a child of the supervisor"):
            PtraceGuard(pid)


def test_no_descriptor_is_left_behind(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        count = lambda: len(os.listdir("/proc/self/fd"))
        before = count()
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
            tracer = PtraceGuard(pid)
            tracer.kill()
            tracer.exited.wait(20)
        del tracer
        for _ in range(100):
            if count() == before:
                break
            time.sleep(0.02)
        say(count() - before)
        """
    )
    assert said == 0
