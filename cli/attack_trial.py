"""An attack on some images over one device, that keeps what it has when it is stopped: queries are not bought back."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.campaign.config import STARTS
from variegate.attack.driver import Task, run
from variegate.attack.oracle import Oracle, to_points
from variegate.attack.outcome import Outcome
from variegate.attack.search import Attack, Problem, seeded
from variegate.keys.errors import LimitError, VariegateError

HEADER = ("image", "true", "label", "found", "distance", "queries", "note")
"""Of `Trial.rows`."""
_NOT_ASKED = -1
_SPENT = "the device's budget is spent"
"""The driver's reason for a search that it ended without a sample."""
_MISREAD = "misread when clean"


class Trial:
    """An attack on some images over one device.

    Attributes:
        outcomes: By image, of those that are done, or were under way when the device or a person stopped the trial.
        labels: What the device says of the clean images, int64 (N,), as far as it was asked.
        queries: Labels that the device gave: the clean images' and the searches'.
        spent: Whether the device's budget ended searches, or did not let a sample be asked again by itself.
        attack: The attack.
        frames: Clean frames.
        true: Classes of the images, int64 (N,), or None when they are not known.
    """

    def __init__(
        self,
        oracle: Oracle,
        attack: Attack,
        frames: NDArray[Any],
        true: NDArray[np.int64] | None = None,
        *,
        queries: int,
        seed: int,
    ) -> None:
        self._oracle, self._each, self._seed = oracle, queries, seed
        self.attack, self.frames, self.true = attack, frames, true
        self.outcomes: dict[int, Outcome] = {}
        self.labels = np.empty(0, np.int64)
        self.queries = 0
        self.spent = False

    def run(self, progress: Callable[[int], None]) -> None:
        """Asks for clean labels and runs the searches; one label of each image's budget is the clean one's.

        An error of the device, or Ctrl-C, ends all searches with what they have before it is raised.

        Raises:
            LimitError, RefusedError, DeviceError, MisuseError: As `driver.run`.
            KeyboardInterrupt: A person stopped it.
        """
        watched = _Watched(self._oracle, self, progress)
        size = self._oracle.batch
        with watched.minding_interrupts():
            for i in range(0, len(self.frames), size):
                part = watched.labels(self.frames[i : i + size])
                self.labels = np.concatenate([self.labels, part])
            watched.ends_searches = True
            for outcome in run(self.attack, self._tasks(), watched):
                stopped = watched.stopped is not None and outcome.reason == _SPENT
                self.outcomes[outcome.key] = replace(outcome, reason="stopped") if stopped else outcome
        if watched.stopped is not None:
            raise watched.stopped

    def misread(self, key: int) -> bool:
        """Whether the device reads an image wrongly when it is clean: nothing needs to fool it then."""
        return self.true is not None and int(self.true[key]) != int(self.labels[key])

    @property
    def judged(self) -> list[Outcome]:
        """Outcomes of images that the device reads rightly, as far as classes are known."""
        return [one for key, one in sorted(self.outcomes.items()) if not self.misread(key)]

    def rows(self) -> list[tuple[object, ...]]:
        """A row for each image that is done."""
        return [
            (
                key,
                "" if self.true is None else int(self.true[key]),
                int(self.labels[key]),
                one.status.value if one.label is None else one.label,
                "" if one.sample is None else f"{one.distance:.4f}",
                one.queries + 1,
                _MISREAD if self.misread(key) else "",
            )
            for key, one in sorted(self.outcomes.items())
        ]

    def archive(self) -> bytes:
        """What was found, as an .npz: images by number, their clean frames and samples, labels, distances, queries.

        A label of -1 stands by a sample that fooled the device but was not asked again by itself: the trial was
        stopped, or the device's budget was spent.
        """
        found = [one for _, one in sorted(self.outcomes.items()) if one.sample is not None]
        keys = np.array([one.key for one in found], np.int64)
        samples = [one.sample for one in found if one.sample is not None]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            image=keys,
            clean=self.frames[keys],
            sample=np.stack(samples) if samples else self.frames[:0],
            clean_label=self.labels[keys],
            misread=np.array([self.misread(one.key) for one in found], np.bool_),
            label=np.array([_NOT_ASKED if one.label is None else one.label for one in found], np.int64),
            distance=np.array([one.distance for one in found], np.float64),
            queries=np.array([one.queries + 1 for one in found], np.int64),
        )
        return buffer.getvalue()

    def _tasks(self) -> Iterator[Task]:
        points = to_points(self.frames).reshape(len(self.frames), -1)
        for key, (point, label) in enumerate(zip(points, self.labels.tolist(), strict=True)):
            others = np.flatnonzero(self.labels != label)
            starts = seeded(self._seed, self.attack.name, key, "starts").permutation(others)[:STARTS]
            problem = Problem(
                clean=point,
                shape=self._oracle.shape,
                label=label,
                starts=points[starts],
                queries=self._each - 1,
                rng=seeded(self._seed, self.attack.name, key),
            )
            yield Task(key=key, problem=problem)


class _Watched:
    """The device, what it answered counted and shown (`attack.oracle.Oracle`).

    Attributes:
        ends_searches: Whether errors look like a spent budget to the driver, which ends searches with what they have.
        stopped: The error that did, or the interruption; nothing is asked after it.
    """

    def __init__(self, oracle: Oracle, trial: Trial, progress: Callable[[int], None]) -> None:
        self.shape, self.dtype, self.classes, self.batch = oracle.shape, oracle.dtype, oracle.classes, oracle.batch
        self._oracle, self._trial, self._progress = oracle, trial, progress
        self._asking = self._interrupted = False
        self.ends_searches = False
        self.stopped: VariegateError | KeyboardInterrupt | None = None

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        if self.stopped is not None:
            raise LimitError("stopped")
        try:
            return self._asked(frames)
        except (VariegateError, KeyboardInterrupt) as error:
            # The driver itself knows what to do about a spent budget.
            spent = isinstance(error, LimitError) and error.retry_after_s is None
            self._trial.spent |= spent
            if spent or not self.ends_searches:
                raise
            self.stopped = error
            raise LimitError("stopped") from error

    @contextmanager
    def minding_interrupts(self) -> Iterator[None]:
        """Ctrl-C breaks off a question or a wait at once, but a search only at its next question; a second one both."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _asked(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        self._asking = True
        try:
            if self._interrupted:
                raise KeyboardInterrupt
            labels = self._oracle.labels(frames)
        finally:
            self._asking = False
        self._trial.queries += len(frames)
        self._progress(len(frames))
        return labels

    def _interrupt(self, *_: object) -> None:
        if self._asking or self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt
        self._interrupted = True
