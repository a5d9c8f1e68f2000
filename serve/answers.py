"""The answers without a label: one table from our errors to HTTP and to the label socket.

They tell a client only to try later, never again, or not at this device now. Texts are fixed, except for those about
the client's own frames and the limits.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError

RETRY_S = 1.0
"""When to ask again after a state that passes by itself: a full queue, an enclave that is being restarted."""


class BusyError(DeviceError):
    """More queries are waiting than there is room for."""


class LeftError(DeviceError):
    """The client left before its answer; nobody reads the answer."""


class TimeLimitError(DeviceError):
    """No answer came in time. The query may have been charged."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no label.

    Attributes:
        status: Of HTTP.
        code: Of the label socket (`serve.socket_wire`).
        reason: Name in the metrics.
        text: For the client.
        retry_after_s: When it may be worth asking again, or None.
    """

    status: int
    code: int
    reason: str
    text: str
    retry_after_s: float | None = None

    @property
    def body(self) -> bytes:
        """The protocol's error object."""
        return json.dumps({"error": self.text}).encode("ascii")

    @property
    def retry_after(self) -> bytes | None:
        """Value of the header Retry-After: whole seconds, rounded up (RFC 9110 section 10.2.3)."""
        return None if self.retry_after_s is None else str(max(1, math.ceil(self.retry_after_s))).encode("ascii")


INPUT, TOO_LARGE, RATE, SPENT, NOT_CURRENT, DOWN, BUSY, CLOSING = 1, 2, 3, 4, 5, 6, 7, 8
"""Codes of the label socket."""
_INTERNAL = Fault(500, DOWN, "internal", "internal error")


def fault_of(error: BaseException) -> Fault:  # noqa: PLR0911 - a table
    """The answer to an error. Never raises; an unknown error becomes an internal error without words."""
    match error:
        case RefusedError(refusal=Refusal.INPUT):
            return Fault(400, INPUT, "input", error.message)
        case RefusedError(refusal=Refusal.TOO_LARGE):
            return Fault(413, TOO_LARGE, "too-large", error.message)
        case RefusedError(refusal=Refusal.EXPIRED | Refusal.ROLLED_BACK):
            return Fault(503, NOT_CURRENT, "not-current", "the copy is not current any more")
        case LimitError(retry_after_s=None):
            # Not 429: clients repeat that by themselves, and no wait brings a budget back.
            return Fault(403, SPENT, "budget", "query budget is spent")
        case LimitError():
            return Fault(429, RATE, "rate", "query rate exceeded", error.retry_after_s)
        case BusyError():
            return Fault(503, BUSY, "busy", "too many queries are waiting", RETRY_S)
        case LeftError():
            return Fault(503, DOWN, "left", "the client has left")
        case TimeLimitError():
            return Fault(503, DOWN, "timeout", "no answer in time; the query may have been charged", RETRY_S)
        case DeviceError():
            return Fault(503, DOWN, "device", "the device gave no answer; the query may have been charged", RETRY_S)
        case MisuseError():
            return Fault(503, CLOSING, "closed", "the device is closed")
        case _:
            return _INTERNAL
