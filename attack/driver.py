"""Runs many searches at once on one oracle, in ragged batches, and checks their samples.

Each image has its own generator (`search.Attack`), which waits for the answers to the points that it yielded. The
driver collects the waiting points into the next batch, asks once, and distributes the answers. A search with one point
and a search with a hundred share a batch, and none waits for the slowest. Answers do not depend on the batch, so the
results do not either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from variegate.attack.lane import Lane, Task, labels_of
from variegate.attack.oracle import Oracle, fill_frames
from variegate.attack.outcome import Outcome
from variegate.attack.search import Attack
from variegate.keys.errors import LimitError, MisuseError

WIDTH = 32
"""Searches under way at once."""
BATCH = 128
"""Most points of one call, unless the oracle takes fewer."""


def run(
    attack: Attack,
    tasks: Iterable[Task],
    oracle: Oracle,
    *,
    width: int = WIDTH,
    batch: int = BATCH,
) -> Iterator[Outcome]:
    """Attacks images; outcomes as they are finished.

    Args:
        attack: The configured attack.
        tasks: Images; taken when there is room, so that an iterator may make them as it goes.
        oracle: The device.
        width: Searches under way at once.
        batch: Most points of one call.

    Yields:
        One outcome for each task. An attack that fails with an exception is an outcome too.

    Raises:
        MisuseError: `width` or `batch` below 1, a key that is there twice, or a task that makes no sense or does not
            fit the oracle.
        RefusedError, DeviceError: The oracle's, or `MALFORMED` for answers without labels; searches under way are lost.
        LimitError: The device's own rate or budget ended the run with a retry in sight; without one, all
            searches end with what they have, judged while single frames are answered, and tasks not begun have no
            outcome.
    """
    if width < 1 or batch < 1:
        raise MisuseError("width and batch must be at least 1")
    waiting, lanes = _distinct(tasks), deque[Lane]()
    buffers = _Batch(oracle, min(batch, oracle.batch))
    spent = silent = False  # a call that does not fit the budget ends searches; one frame may still fit
    while True:
        while len(lanes) < width and not spent and (task := next(waiting, None)) is not None:
            lane = Lane(attack, task, oracle)
            if lane.ended:
                yield lane.judged(oracle)
            else:
                lanes.append(lane)
        if not lanes:
            return
        try:
            buffers.turn(lanes)
        except LimitError as error:
            if error.retry_after_s is not None:
                raise
            spent = True
            for lane in lanes:
                lane.close("the device's budget is spent")
        # Finished ones leave in the order in which they came; the others keep it.
        for lane in [lane for lane in lanes if lane.ended]:
            lanes.remove(lane)
            try:
                outcome = lane.judged(None if silent else oracle)
            except LimitError as error:
                if error.retry_after_s is not None:
                    raise
                spent = silent = True
                outcome = lane.judged(None)
            yield outcome


class _Batch:
    """One batch, filled from all searches and asked, in buffers that last the whole run."""

    def __init__(self, oracle: Oracle, size: int) -> None:
        self._oracle, self._size = oracle, size
        self._points = np.empty((size, int(np.prod(oracle.shape))), np.float32)
        # A device of floats is given the points themselves.
        self._frames = self._points if oracle.dtype == "float32" else np.empty(self._points.shape, oracle.dtype)

    def turn(self, lanes: Iterable[Lane]) -> None:
        """Asks one batch, filled from the front, and hands the answers out."""
        taken: list[tuple[Lane, int]] = []
        count = 0
        for lane in lanes:
            if count == self._size:
                break
            points = lane.take(self._size - count)
            end = count + len(points)
            self._points[count:end] = points
            taken.append((lane, end))
            count = end
        frames = self._frames[:count]
        fill_frames(self._points[:count], frames)
        labels = labels_of(self._oracle, frames.reshape(-1, *self._oracle.shape))
        at = 0
        for lane, end in taken:
            lane.answer(frames[at:end], labels[at:end])
            at = end


def _distinct(tasks: Iterable[Task]) -> Iterator[Task]:
    keys: set[int] = set()
    for task in tasks:
        if task.key in keys:
            raise MisuseError(f"two tasks have the key {task.key}")
        keys.add(task.key)
        yield task


def outcomes(
    attack: Attack, tasks: Sequence[Task], oracle: Oracle, progress: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """As `run`, all of them, in the order of the tasks.

    Raises:
        MisuseError, RefusedError, DeviceError: As `run`.
        LimitError: As `run`; also where the device's budget was spent before the last was begun.
    """
    by_key: dict[int, Outcome] = {}
    for outcome in run(attack, tasks, oracle):
        by_key[outcome.key] = outcome
        progress(outcome)
    if len(by_key) < len(tasks):
        raise LimitError(f"the device's budget was spent with {len(tasks) - len(by_key)} images not begun")
    return [by_key[task.key] for task in tasks]
