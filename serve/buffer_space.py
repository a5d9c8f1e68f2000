"""Limits the bytes of requests held at one time: HTTP bodies and frames of the label socket together."""

from __future__ import annotations

import threading

from variegate.serve.answers import BusyError, LeftError


class BufferSpace:
    """A number of bytes, shared out by claims. For any thread.

    Args:
        total: Most bytes of all claims together.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of all claims."""
        return self._held

    def claim(self) -> Claim:
        """A claim of no bytes yet; its maker must release it."""
        return Claim(self)

    def _move(self, claim: Claim, count: int, leave: int = 0) -> None:
        with self._lock:
            if claim.over:
                raise LeftError("the request has ended")
            change = count - claim.bytes
            if change > 0 and self._held + change > self._total - leave:
                raise BusyError("too many bytes of requests are held")
            self._held += change
            claim.bytes = count

    def _end(self, claim: Claim) -> None:
        with self._lock:
            claim.over = True
            self._held -= claim.bytes
            claim.bytes = 0


class Claim:
    """The bytes of one request: as received, and as decompressed and parsed.

    Attributes:
        bytes: Held now.
        over: Whether it was released; a thread that still works on the request can then claim nothing for it.
    """

    __slots__ = ("_room", "bytes", "over")

    def __init__(self, room: BufferSpace) -> None:
        self._room = room
        self.bytes = 0
        self.over = False

    def add(self, count: int, *, leave: int = 0) -> None:
        """Holds more bytes.

        Args:
            count: Bytes.
            leave: Bytes of the room that must stay free after it.

        Raises:
            BusyError: There is no room; the claim stays as it was.
            LeftError: It was released.
        """
        self._room._move(self, self.bytes + count, leave)  # noqa: SLF001 - the two are one

    def hold(self, count: int) -> None:
        """Holds so many bytes from now on.

        Raises:
            BusyError: There is no room; the claim stays as it was.
            LeftError: It was released.
        """
        self._room._move(self, count)  # noqa: SLF001 - the two are one

    def release(self) -> None:
        """Holds none, for good."""
        self._room._end(self)  # noqa: SLF001
