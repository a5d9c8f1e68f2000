"""Checks once a second, on a thread of its own, whether the device can answer; a hung enclave delays no client."""

from __future__ import annotations

import threading
import time

from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.runtime.enclave import Status
from variegate.runtime.port import LabelPort
from variegate.serve.dispatcher import Dispatcher

_PERIOD_S = 1.0
_STALE_S = 5.0


class Health:
    """The known state of the port. Reading it never blocks.

    Args:
        port: Asked for its `status`.
        dispatcher: Knows how the latest query ended.
    """

    def __init__(self, port: LabelPort, dispatcher: Dispatcher) -> None:
        self._port, self._dispatcher = port, dispatcher
        self._stop = threading.Event()
        self._status: Status | None = None
        self._seen = float("-inf")
        self.stopping = False
        self._look()
        self._thread = threading.Thread(target=self._watch, name="variegate-health", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether a query now would be answered, regardless of budget and rate."""
        if self.stopping or self._status is None or time.monotonic() - self._seen > _STALE_S:
            return False
        error = self._dispatcher.last_error
        if error is None:
            return True
        # Closed and out of date do not pass by themselves; anything else may have, once the status answers again.
        lasting = isinstance(error, MisuseError) or (
            isinstance(error, RefusedError) and error.refusal in {Refusal.EXPIRED, Refusal.ROLLED_BACK}
        )
        return not lasting and self._seen > self._dispatcher.failed_at

    @property
    def remaining(self) -> int | None:
        """Labels left in the budget when last asked, or None."""
        return None if self._status is None else self._status.remaining

    def close(self) -> None:
        """Stops asking; one that hangs is left behind."""
        self._stop.set()
        self._thread.join(_PERIOD_S)

    def _watch(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self._look()

    def _look(self) -> None:
        begin = time.monotonic()
        try:
            self._status = self._port.status()
        except Exception:  # noqa: BLE001 - whatever it was, the device is not ready
            self._status = None
        else:
            self._seen = begin
