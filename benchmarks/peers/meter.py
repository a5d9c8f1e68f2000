"""A layer between another toolkit and the network: it counts, times, stops at the budget and keeps the best."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Network = Callable[[Any], NDArray[np.int64]]
"""Labels, int64 (N,), of float32 (N, C, H, W) in 0..1, in whatever container the toolkit uses."""


class SpentError(Exception):
    """The budget is spent; it ends the toolkit's attack from inside."""


class Meter:
    """Answers a toolkit.

    Attributes:
        queries: Frames labelled.
        forward_s: Seconds inside the network.
        judge_s: Seconds spent on dtypes and on the best so far: the benchmark's work and not the toolkit's.
        best: L2 of the nearest frame asked that fools, for each image under attack.
    """

    def __init__(self, network: Network, budget: int) -> None:
        """Wraps a network.

        Args:
            network: It.
            budget: Queries for each image.
        """
        self._network, self._budget = network, budget
        self.queries, self.forward_s, self.judge_s = 0, 0.0, 0.0
        self._clean, self._truth, self._left = np.empty((0, 0), np.float32), np.empty(0, np.int64), 0
        self.best = np.empty(0)

    def begin(self, clean: NDArray[np.float32], truth: NDArray[np.int64]) -> None:
        """The next images, (B, C, H, W), and the network's labels of them, (B,).

        A toolkit that attacks one image asks any number of frames in a call; one that attacks several in step asks
        one frame of each.
        """
        self._clean, self._truth = clean.reshape(len(clean), -1), truth
        self._left = self._budget
        self.best = np.full(len(clean), np.inf)

    def labels(self, frames: Any) -> NDArray[np.int64]:
        """As `Network`.

        Raises:
            SpentError: The budget ends in this call; what it still covers was asked and judged.
        """
        images = len(self._clean)
        allowed = min(len(frames), self._left * images)
        entered = time.process_time()
        shown = frames[:allowed]
        if isinstance(shown, np.ndarray):
            # Under numpy 2 a float64 scalar no longer yields to a float32 array, so that ART's points are float64.
            shown = np.clip(shown, 0, 1).astype(np.float32)
        self.judge_s += time.process_time() - entered
        start = time.perf_counter()
        labels = self._network(shown) if allowed else np.empty(0, np.int64)
        self.forward_s += time.perf_counter() - start
        asked = time.process_time()
        self.queries += allowed
        self._left -= allowed // images
        for i in np.flatnonzero(labels != (self._truth[: len(labels)] if images > 1 else self._truth[0])):
            owner = i if images > 1 else 0
            away = np.asarray(shown[int(i)]).reshape(-1) - self._clean[owner]
            self.best[owner] = min(self.best[owner], float(np.sqrt(away @ away)))
        self.judge_s += time.process_time() - asked
        if allowed < len(frames):
            raise SpentError
        return labels
