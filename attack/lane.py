"""A running search: the points for which it waits, its answers, and the check of its sample."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import LEVELS, Oracle, to_frames, to_points
from variegate.attack.oracles.frames import check_labels
from variegate.attack.outcome import Outcome, Status
from variegate.attack.search import Attack, Points, Problem, Search, distance
from variegate.keys.errors import MisuseError, VariegateError

_MARGIN = 1 + 1e-3
"""The margin for a length in float32 when it excludes points that cannot be an improvement."""
_IDLE = 1000
"""Times in a row that an attack may ask nothing before it counts as one that never ends."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One image to attack.

    Attributes:
        key: The caller's number of it, in the outcome.
        problem: For the attack. Its `queries`, at least 1, include the one of the final judgement.
        checkpoints: Numbers of queries at which the sample so far is noted, ascending. An iterate that an attack told
            on the answer to the last of them is not in it.
    """

    key: int
    problem: Problem
    checkpoints: tuple[int, ...] = ()


def task(
    key: int,
    frame: NDArray[Any],
    label: int,
    *,
    starts: NDArray[Any] | None = None,
    target: int | None = None,
    queries: int,
    rng: np.random.Generator,
    checkpoints: tuple[int, ...] = (),
) -> Task:
    """A search for one image, from frames as devices or files have them.

    Args:
        key: The caller's number of it.
        frame: The clean image, uint8 or float32 in 0..1, (C, H, W).
        label: The device's label of it.
        starts: Pictures that may be answered as wanted, (n, C, H, W), likewise; None for none.
        target: The class wanted; None for any other than `label`.
        queries: As `Problem.queries`.
        rng: All randomness.
        checkpoints: As `Task.checkpoints`.
    """
    channels, height, width = frame.shape
    others = frame[np.newaxis][:0] if starts is None else starts
    problem = Problem(
        clean=to_points(frame).reshape(-1),
        shape=(channels, height, width),
        label=label,
        target=target,
        starts=to_points(others).reshape(len(others), frame.size),
        queries=queries,
        rng=rng,
    )
    return Task(key=key, problem=problem, checkpoints=checkpoints)


def labels_of(oracle: Oracle, frames: NDArray[Any]) -> NDArray[np.int64]:
    """The device's answers, which may be wrong in form."""
    return check_labels(np.asarray(oracle.labels(frames)), len(frames), oracle.classes)


@dataclass
class _Sample:
    """The nearest of something so far."""

    frame: NDArray[Any] | None = None
    distance: float = np.inf
    trace: list[tuple[int, float]] = field(default_factory=list)


class Lane:
    """One search under way."""

    def __init__(self, attack: Attack, task: Task, oracle: Oracle) -> None:
        problem = task.problem
        if problem.shape != oracle.shape or problem.clean.shape != (int(np.prod(problem.shape)),):
            raise MisuseError(f"an image of shape {problem.shape} does not fit frames of {oracle.shape}")
        _check(problem, oracle.classes)
        marks = task.checkpoints
        if problem.queries < 1 or any(later <= mark for mark, later in zip((0, *marks), marks, strict=False)):
            raise MisuseError("a task needs at least 1 query, and checkpoints that ascend from 1")
        self._attack, self._task, self._problem, self._dtype = attack, task, problem, oracle.dtype
        problem.dtype = oracle.dtype
        self._clean = to_frames(problem.clean, oracle.dtype)
        self._clean_points = to_points(self._clean)
        self._clean_floats = self._clean.astype(np.float32, copy=False)
        self._ruler = np.float32(LEVELS if oracle.dtype == "uint8" else 1)
        self._judges_best = attack.result == "best"
        self._allowed = problem.queries - 1  # one is kept for the judgement
        self._queries = 0
        self._best = _Sample()
        self._marks = deque(marks)
        self._checkpoints: dict[int, NDArray[Any] | None] = {}
        self._fooling: set[int] = set()  # hashes: an iterate need not be a frame that fooled
        self._failure = ""
        self.ended = False
        self._search: Search = attack.search(problem)
        self._pending: Points = problem.clean[np.newaxis][:0]
        self._taken = self._answered = 0
        self._answers = np.empty(0, np.bool_)
        self._advance(first=True)

    def take(self, room: int) -> Points:
        """Up to `room` points that wait."""
        end = min(len(self._pending), self._taken + room)
        points = self._pending[self._taken : end]
        self._taken = end
        return points

    def answer(self, frames: NDArray[Any], labels: NDArray[np.int64]) -> None:
        """Takes the answers to the points that `take` gave last."""
        wanted = self._problem.target
        fooled = labels != self._problem.label if wanted is None else labels == wanted
        end = self._answered + len(labels)
        self._answers[self._answered : end] = fooled
        self._answered = end
        self._queries += len(labels)
        if not self._judges_best:
            self._fooling.update(hash(frame.tobytes()) for frame in frames[fooled])
        self._note_checkpoints(frames, fooled)
        if self._answered < len(self._pending):
            return
        if self._cut:
            self.close()
        else:
            self._advance()

    def close(self, why: str = "") -> None:
        """Ends the search with its best point so far."""
        self._search.close()
        self._failure = why if self._best.frame is None else self._failure
        self._end()

    def judged(self, oracle: Oracle | None) -> Outcome:
        """The outcome, the sample asked again by itself; without an oracle its answer in the search has to do."""
        sample, label, queries = self._best.frame, None, self._queries
        if sample is not None and oracle is not None:
            label = int(labels_of(oracle, sample.reshape(1, *self._problem.shape))[0])
            queries += 1
            wanted = self._problem.target
            if label == self._problem.label if wanted is None else label != wanted:
                self._failure, sample = "the sample got another label when asked alone", None
        elif sample is not None and not self._judges_best and hash(sample.tobytes()) not in self._fooling:
            self._failure, sample = "the device's budget was spent before the sample was asked", None
        status = Status.FOUND if sample is not None else Status.FAILED if self._failure else Status.NONE
        shape = self._problem.shape
        return Outcome(
            key=self._task.key,
            status=status,
            reason=self._failure if status is not Status.FOUND else "",
            sample=None if sample is None else sample.reshape(shape),
            label=label if sample is not None else None,
            distance=self._best.distance if sample is not None else float("inf"),
            queries=queries,
            trace=tuple(self._best.trace),
            checkpoints={
                at: None if frame is None else frame.reshape(shape) for at, frame in self._checkpoints.items()
            },
        )

    def _advance(self, *, first: bool = False) -> None:
        """Hands the answers over and takes the next points; an attack that has nothing to ask continues at once."""
        try:
            for _ in range(_IDLE):
                points = next(self._search) if first else self._search.send(self._answers)
                first = False
                self._note_iterate()
                points = np.asarray(points, np.float32).reshape(-1, self._clean.size)
                _check_finite(points)
                allowed = self._allowed - self._queries
                self._cut = len(points) > allowed
                self._pending = points[:allowed]
                self._taken = self._answered = 0
                self._answers = np.empty(len(self._pending), np.bool_)
                if len(self._pending):
                    return
                if self._cut:
                    self.close()
                    return
            self.close("the attack asks nothing and does not end")
        except StopIteration:
            self._note_iterate()
            self._end()
        except VariegateError:
            raise
        except Exception as error:  # noqa: BLE001  an attack's fault is that image's outcome, not the run's end
            self._failure = f"{type(error).__name__}: {error}"
            self._note_iterate()
            self._end()

    def _end(self) -> None:
        self.ended = True
        while self._marks:
            self._checkpoints[self._marks.popleft()] = self._best.frame

    def _note_checkpoints(self, frames: NDArray[Any], fooled: NDArray[np.bool_]) -> None:
        """Notes the best of the frames asked, mark by mark: a batch may pass several."""
        before, at = self._queries - len(fooled), 0
        while self._marks and self._marks[0] <= self._queries:
            end = self._marks[0] - before
            self._note_best(frames[at:end], fooled[at:end], before + at)
            self._checkpoints[self._marks.popleft()] = self._best.frame
            at = end
        self._note_best(frames[at:], fooled[at:], before + at)

    def _note_best(self, frames: NDArray[Any], fooled: NDArray[np.bool_], before: int) -> None:
        """Notes every improvement in the order asked, so that the trace does not depend on batches."""
        if not self._judges_best or not fooled.any():
            return
        # Most frames are no improvement. A rough length, good to a millionth, sorts them out in two passes.
        away = np.subtract(frames, self._clean_floats, dtype=np.float32)
        linf = self._attack.norm == "linf"
        rough = np.abs(away, out=away).max(axis=1) if linf else np.sqrt(np.vecdot(away, away))
        near = fooled & (rough <= self._best.distance * _MARGIN * self._ruler)
        where = np.flatnonzero(near)
        if not len(where):
            return
        lengths = distance(to_points(frames[where]), self._clean_points, self._attack.norm)
        nearest = -1
        for i, length in zip(where.tolist(), lengths.tolist(), strict=True):
            if length < self._best.distance:
                self._best.distance, nearest = length, i
                self._best.trace.append((before + i + 1, length))
        if nearest >= 0:
            self._best.frame = frames[nearest].copy()

    def _note_iterate(self) -> None:
        if self._attack.result != "iterate" or (point := self._problem.kept) is None:
            return
        frame = to_frames(point, self._dtype)
        self._problem.kept = None
        self._best.frame = frame.copy()
        self._best.distance = float(distance(to_points(frame)[np.newaxis], self._clean_points, self._attack.norm)[0])
        self._best.trace.append((self._queries, self._best.distance))


def _check_finite(points: Points) -> None:
    # One sum is much quicker than a look at each.
    if not math.isfinite(points.sum()):
        raise ValueError("the attack asks for points that are not finite")


def _check(problem: Problem, classes: int) -> None:
    clean, starts = problem.clean, problem.starts
    if starts.ndim != 2 or starts.shape[1:] != clean.shape:  # noqa: PLR2004
        raise MisuseError(f"starts of shape {starts.shape} are not pictures like an image of {clean.shape}")
    # The comparison is also false for NaN.
    if not all(each.min(initial=0) >= 0 and each.max(initial=0) <= 1 for each in (clean, starts)):
        raise MisuseError("an image or its starts hold values outside of [0, 1]")
    if not 0 <= problem.label < classes or not (problem.target is None or 0 <= problem.target < classes):
        raise MisuseError(f"a label or a target is none of the device's {classes} classes")
    if problem.target == problem.label:
        raise MisuseError("a search cannot aim at the image's own label")
