"""The supervisor traces the enclave, so that nobody else can: a process has at most one tracer.

The enclave runs at full speed: it stops only for signals and forks, never for system calls, and continues at once. When
the supervisor ends for any reason, the kernel kills the traced process.

ptrace has two rules: every request must come from the tracing thread, and `waitpid` in another thread would take its
stops. So one thread of its own does both, and nobody else waits for the child: start it with `os.posix_spawn`, not with
`subprocess.Popen`, which waits for its children by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from pathlib import Path

from variegate.isolation import machine, syscalls
from variegate.keys.errors import DeviceError
from variegate.runtime.enclave import Protection, ProtectionState

NAME = "ptrace"

_CONT, _SEIZE, _LISTEN = 7, 0x4206, 0x4208
_FORKS = 1 << 1 | 1 << 2 | 1 << 3
_EXIT_KILL = 1 << 20
_EVENT_STOP = 128
_WAIT_ALL, _WAIT_OWN_THREAD = 0x4000_0000, 0x2000_0000
_STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


class PtraceGuard:
    """Holds a child process and all that it forks, until it ends.

    If the kernel refuses ptrace, it still waits for the child and reports the protection as unavailable; such a child
    ends with the supervisor only because its socket closes. If another process traces the child, `foreign` says so:
    such a child must not be given anything.

    Attributes:
        pid: Of the child.
        exited: Set once the child has ended and been waited for.
        protection: Whether it is held.
    """

    def __init__(self, pid: int, *, hold: bool = True) -> None:
        """Seizes a child of this process. Returns once it is held or that has failed.

        Args:
            pid: Of a child for which nobody else waits.
            hold: Whether to seize it; without, it is only waited for, and debuggers may.

        Raises:
            DeviceError: It is not a child of this process, or has been waited for.
        """
        self.pid = pid
        self.exited = threading.Event()
        self.protection = Protection(NAME, ProtectionState.UNAVAILABLE, "not seized yet")
        self._status: int | None = None
        try:
            self._descriptor = os.pidfd_open(pid)
            os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError as error:
            raise DeviceError(f"the process is not a child of the supervisor: {syscalls.name_of(error)}") from None
        self._wanted = hold
        self._thread = 0
        self._taken = False
        seized = threading.Event()
        # A daemon: when the interpreter ends, so does this thread, and the kernel kills the child.
        threading.Thread(target=self._run, args=(seized,), name=f"tracer of {pid}", daemon=True).start()
        seized.wait()

    def __repr__(self) -> str:
        return f"PtraceGuard(pid={self.pid}, {self.protection.state}, status={self._status})"

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._descriptor)

    @property
    def status(self) -> int | None:
        """Exit status of the child, or minus the signal that ended it; None while it runs or if nobody knows."""
        return self._status

    @property
    def how_it_ended(self) -> str:
        """In words, for the log."""
        if not self.exited.is_set():
            return "still running"
        if self._status is None or self._status >= 0:
            return f"exit status {self._status}"
        number = -self._status
        return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"

    @property
    def foreign(self) -> bool:
        """Whether another process traces the child, or did when it was to be seized; false where debuggers may."""
        return self._wanted and (self._taken or _tracer_of(self.pid) not in (0, self._thread))

    def kill(self) -> None:
        """Kills the child in any state; `exited` follows. Nothing happens when it has ended."""
        # By descriptor: the number may belong to another process by now.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def _run(self, seized: threading.Event) -> None:
        self._thread = threading.get_native_id()
        try:
            if not self._wanted:
                self.protection = Protection(NAME, ProtectionState.OFF, "debugging is asked for")
                seized.set()
                self._wait_only()
                return
            try:
                syscalls.ptrace(_SEIZE, self.pid, _EXIT_KILL | _FORKS)
            except OSError as error:
                self._taken = error.errno == errno.EPERM and (_tracer_of(self.pid) != 0 or _seizes_others(self.pid))
                self.protection = _refused(error)
                seized.set()
                self._wait_only()
            else:
                self.protection = Protection(NAME, ProtectionState.ON, "held by the supervisor")
                seized.set()
                self._hold()
        finally:
            # If it ends in any other way than the child's, the kernel kills the child with this thread.
            seized.set()
            self.exited.set()

    def _wait_only(self) -> None:
        # Its end only: waiting at once would take the stops from a debugger in this process.
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        ready.poll()
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | _WAIT_ALL)
            if ended is not None:
                exited = ended.si_code == os.CLD_EXITED
                self._status = ended.si_status if exited else -ended.si_status

    def _hold(self) -> None:
        """Waits for all that this thread traces and lets each continue, until nothing is left."""
        others: set[int] = set()
        while True:
            try:
                # Only processes that this thread traces, and no other children of the supervisor.
                pid, raw = os.waitpid(-1, _WAIT_ALL | _WAIT_OWN_THREAD)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(raw):
                if pid != self.pid:
                    others.add(pid)
                    if self.exited.is_set():
                        _kill(pid)
                _resume(pid, os.WSTOPSIG(raw), raw >> 16)
                continue
            others.discard(pid)
            if pid == self.pid:
                self._status = os.waitstatus_to_exitcode(raw)
                self.exited.set()
                # Its forks do not outlive it.
                for other in others:
                    _kill(other)


def _refused(error: OSError, host: Protection | None = None) -> Protection:
    """What it means that the kernel refuses to seize: where it refuses everybody, nobody else holds the child either.

    Args:
        error: The kernel's answer.
        host: The machine's `host-ptrace`; read now unless given.
    """
    if error.errno == errno.EPERM and (host or machine.ptrace()).state == ProtectionState.ON:
        return Protection(NAME, ProtectionState.ON, "held by the host: Yama 3")
    return Protection(NAME, ProtectionState.UNAVAILABLE, f"seizing is refused: {syscalls.name_of(error)}")


def _resume(pid: int, number: int, event: int) -> None:
    """Lets a stopped process continue as if nobody held it."""
    if event == _EVENT_STOP and number in _STOPPING:
        request, data = _LISTEN, 0  # a real SIGSTOP: it stays stopped, and SIGCONT still reaches it
    elif event:
        request, data = _CONT, 0
    else:
        request, data = _CONT, number  # a signal on its way: delivered
    # Killed in between; the next wait says so.
    with contextlib.suppress(ProcessLookupError):
        syscalls.ptrace(request, pid, data)


def _tracer_of(pid: int) -> int:
    """The thread that traces a process; 0 for none, for one in a namespace above, or when the process is gone."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/status").open() as lines:
        for line in lines:
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0


def _seizes_others(pid: int) -> bool:
    """Whether this thread may seize a child that runs the same program: then it was not the kernel that refused.

    A tracer in a namespace above is not visible in `/proc`, nor is one that has detached by now.
    """
    ends = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, ends[0], 0)]
        waits = ["probe", "-I", "-S", "-c", "import os; os.read(0, 1)"]
        probe = os.posix_spawn(f"/proc/{pid}/exe", waits, {}, file_actions=actions)
    except OSError:
        return False
    finally:
        for end in ends:
            os.close(end)
    try:
        syscalls.ptrace(_SEIZE, probe, _EXIT_KILL)
    except OSError:
        return _tracer_of(probe) != 0
    else:
        return True
    finally:
        _kill(probe)
        os.waitpid(probe, _WAIT_ALL)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
