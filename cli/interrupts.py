"""Ctrl-C during queries: it ends a query or a wait at once, but a search only at its next query."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle


class Interruptible:
    """A device (`attack.oracle.Oracle`) whose caller a person may interrupt; a context manager.

    A second Ctrl-C ends any work.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.shape, self.dtype, self.classes, self.batch = oracle.shape, oracle.dtype, oracle.classes, oracle.batch
        self._oracle = oracle
        self._asking = self._interrupted = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """As the device's.

        Raises:
            KeyboardInterrupt: A person interrupted it, now or since the last question.
        """
        self._asking = True
        try:
            if self._interrupted:
                raise KeyboardInterrupt
            return self._oracle.labels(frames)
        finally:
            self._asking = False

    def _interrupt(self, *_: object) -> None:
        if self._asking or self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt
        self._interrupted = True
