"""Polls for the other side's packet instead of sleeping, when it is due.

A sleeping core takes tens of microseconds to run again, above all in a virtual machine, and starts with cold caches. If
the next packet is due, this polls for it for a short time. It only finds out that a packet came; the reader handles
time limits, errors and the packet itself.
"""

from __future__ import annotations

import os
import select
import socket
import time

from variegate.isolation import syscalls
from variegate.runtime.limits import LIMITS

AFTER_ANSWER_S = 100e-6
"""How long the enclave looks for the next question; a supervisor that asks in a row asks within half of that."""
_EARLY_S = 150e-6
"""How long before an answer is due the supervisor wakes: timers come up to 50 µs late, and so does a sleeping core."""
_LATE_S = 100e-6
"""How long after it was due the supervisor looks on."""
_FALL, _RISE = 0.5, 0.125
_GAP_S = 30e-6
"""Between two looks; they take less than 1 µs, so another process or thread has had the core."""
_MOST_LEFT_OUT = 255


class Watch:
    """Polls a socket for data, as long as that is worth it. Not thread-safe.

    After a poll that is in vain, or that another process interrupts, the next ones are left out: one, then three, then
    seven and so on; a poll that succeeds reduces this number by an eighth. So a machine with more work than cores,
    where polling takes the core from the other side, loses almost nothing.
    """

    def __init__(self, channel: socket.socket) -> None:
        """Prepares; call it before the lockdown, which hides the number of cores."""
        self._alone = len(os.sched_getaffinity(0)) < 2  # noqa: PLR2004  this side and the other
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._descriptor = channel.fileno()
        self._out = self._left = 0

    def look(self, seconds: float, after: float = 0.0) -> bool:
        """Waits until something has come, or the time is over, keeping the core busy; or returns at once.

        Args:
            seconds: How long to look.
            after: Seconds to sleep before that, if nothing comes meanwhile.

        Returns:
            Whether there is something to read, or nobody left to write it. False says nothing.
        """
        if self._alone:
            return False
        if self._left > 0:
            self._left -= 1
            return False
        # Python's `poll` would sleep for whole milliseconds.
        if after > 0 and syscalls.readable_within(self._descriptor, after):
            return True
        poll, clock = self._poll.poll, time.monotonic
        last = clock()
        until = last + seconds
        while True:
            came = poll(0)
            now = clock()
            gap = now - last > _GAP_S
            if came or gap or now > until:
                break
            last = now
        out = self._out
        self._out = out - -(-out // 8) if came and not gap else min(2 * out + 1, _MOST_LEFT_OUT)
        self._left = self._out
        return bool(came)


class Pace:
    """When answers are due: learnt from the recent, shorter times for the same number of frames. Not thread-safe.

    An enclave under an attacker's control can make the supervisor poll in vain, but for no longer than an honest one
    could.
    """

    def __init__(self, watch: Watch) -> None:
        """Knows of none yet.

        Args:
            watch: On the socket that answers come from.
        """
        self._watch = watch
        self._usual: dict[int, float] = {}

    def expect(self, frames: int, most: float) -> bool:
        """Waits for the answer to so many frames until it is there or overdue; without experience, not at all.

        Args:
            frames: Their number; 0 for a packet that is not a query.
            most: Seconds that are left for it.

        Returns:
            As `Watch.look`.
        """
        due = self._usual.get(frames)
        if due is None or due + _LATE_S >= most:
            return False
        return self._watch.look(min(due, _EARLY_S) + _LATE_S, due - _EARLY_S)

    def took(self, frames: int, seconds: float) -> None:
        """Notes how long an answer took."""
        if 0 < frames <= LIMITS.slice:  # for more, the time to wake up is nothing
            usual = self._usual.get(frames, seconds)
            self._usual[frames] = usual + (seconds - usual) * (_FALL if seconds < usual else _RISE)
