"""Ctrl-C during queries: it ends a query or a wait at once, but a search only at its next query."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle, Wrapper


class Interruptible:
    """Devices whose caller a person may interrupt; a context manager.

    A second Ctrl-C breaks off whatever is done.

    Attributes:
        devices: The devices (`attack.oracle.Oracle`).
    """

    def __init__(self, devices: Sequence[Oracle]) -> None:
        self.devices = [_Device(device, self) for device in devices]
        self._asking = self._interrupted = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A block in which a device is asked.

        Raises:
            KeyboardInterrupt: A person interrupted it, now or since the last question.
        """
        self._asking = True
        try:
            if self._interrupted:
                raise KeyboardInterrupt
            yield
        finally:
            self._asking = False

    def _interrupt(self, *_: object) -> None:
        if self._asking or self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt
        self._interrupted = True


class _Device(Wrapper):
    """One of them."""

    def __init__(self, oracle: Oracle, all_of_them: Interruptible) -> None:
        super().__init__(oracle)
        self._all = all_of_them

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        with self._all.asking():
            return self._oracle.labels(frames)
