"""The driver: ragged batches change nothing, budgets are exact, and the harness judges, not the attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.outcomes import distance_at
from variegate.attack.algorithms.steps import first_start, fools, to_boundary
from variegate.attack.driver import outcomes, run
from variegate.attack.lane import Task
from variegate.attack.oracle import Counted, to_frames, to_points
from variegate.attack.outcome import Outcome, Status
from variegate.attack.search import Norm, Problem, Result, Search, seeded
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError, VariegateError

SHAPE = (1, 4, 4)
SIZE = 16


@dataclass
class Plane:
    """Label 1 where the mean exceeds a half. Notes the sizes of its batches."""

    dtype: str = "float32"
    batch: int = 64
    shape: tuple[int, int, int] = SHAPE
    classes: int = 2
    sizes: list[int] = field(default_factory=list)

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        assert frames.dtype == self.dtype
        assert frames.shape[1:] == SHAPE
        assert len(frames) <= self.batch
        self.sizes.append(len(frames))
        out: NDArray[np.int64] = (to_points(frames).mean(axis=(1, 2, 3)) > 0.5).astype(np.int64)
        return out


@dataclass(frozen=True)
class Walk:
    """Bisects, then asks bursts of random size on the boundary for ever."""

    name: ClassVar[str] = "walk"
    norm: Norm = "l2"
    result: Result = "best"
    raises: bool = False
    ends: bool = False

    def search(self, problem: Problem) -> Search:
        point = yield from first_start(problem)
        if point is None:
            return
        point = yield from to_boundary(problem, point, 1e-3)
        problem.keep(point)
        if self.raises:
            raise ValueError("a fault")
        while not self.ends:
            burst = int(problem.rng.integers(0, 9))
            steps = problem.rng.normal(0, 0.01, (burst, SIZE)).astype(np.float32)
            yield np.clip(point + steps, 0, 1)


def task(key: int, queries: int = 60, checkpoints: tuple[int, ...] = (), **more: Any) -> Task:
    rng = seeded("test", key)
    clean = rng.random(SIZE, np.float32) * np.float32(0.9)
    starts = np.ones((1, SIZE), np.float32)
    given = {"clean": clean, "label": 0, "starts": starts, **more}
    problem = Problem(shape=SHAPE, queries=queries, rng=rng, **given)
    return Task(key=key, problem=problem, checkpoints=checkpoints)


def length(frame: NDArray[Any], clean: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(frame.reshape(-1) - clean))


def same(left: Sequence[Outcome], right: Sequence[Outcome]) -> bool:
    return all(
        a.trace == b.trace
        and a.queries == b.queries
        and np.array_equal(a.sample, b.sample)  # type: ignore[arg-type]
        and all(np.array_equal(a.checkpoints[k], b.checkpoints[k]) for k in a.checkpoints)  # type: ignore[arg-type]
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_results_depend_neither_on_batches_nor_on_width(dtype: str) -> None:
    marks = (5, 20, 60)
    alone = outcomes(Walk(), [task(i, checkpoints=marks) for i in range(9)], Plane(dtype=dtype, batch=1))
    for width, batch in ((1, 64), (3, 7), (32, 64)):
        found = sorted(
            run(Walk(), [task(i, checkpoints=marks) for i in range(9)], Plane(dtype=dtype), width=width, batch=batch),
            key=lambda outcome: outcome.key,
        )
        assert same(alone, found)
    assert all(outcome.status is Status.FOUND for outcome in alone)


def test_every_search_spends_its_queries_exactly_and_no_more() -> None:
    for queries in (2, 3, 17, 60):
        plane = Plane()
        counted = Counted(plane)
        found = outcomes(Walk(), [task(i, queries=queries) for i in range(5)], counted)
        assert [outcome.queries for outcome in found] == [queries] * 5
        assert counted.queries == 5 * queries == sum(plane.sizes)


def test_batches_are_full_while_there_is_work() -> None:
    plane = Plane(batch=16)
    outcomes(Walk(), [task(i, queries=500) for i in range(40)], plane)
    assert np.mean([size for size in plane.sizes if size > 1]) > 14


def test_the_best_point_asked_counts_and_checkpoints_hold_the_best_so_far() -> None:
    (found,) = outcomes(Walk(), [task(3, checkpoints=(1, 10, 60))], Plane())
    distances = [length for _, length in found.trace]
    assert distances == sorted(distances, reverse=True)
    assert found.sample is not None
    clean = task(3).problem.clean
    assert found.distance == pytest.approx(length(found.sample, clean), rel=1e-5)
    for at, frame in found.checkpoints.items():
        reached = distance_at(found, at)
        assert (frame is None) == (reached == float("inf"))
        if frame is not None:
            assert reached == pytest.approx(length(frame, clean), rel=1e-5)


@dataclass(frozen=True)
class Closer:
    """Asks ever nearer points, all in one burst."""

    name: ClassVar[str] = "closer"
    norm: Norm = "l2"
    result: Result = "best"

    def search(self, problem: Problem) -> Search:
        assert problem.dtype in {"float32", "uint8"}
        yield np.linspace(1, 0, 20, dtype=np.float32)[:, np.newaxis] + np.zeros(SIZE, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_improvement_inside_a_batch_is_noted(dtype: str, norm: Norm) -> None:
    for batch in (1, 7, 64):
        clean = task(0, clean=np.zeros(SIZE, np.float32))
        (found,) = run(Closer(norm=norm), [clean], Plane(dtype=dtype), batch=batch)
        scale = 1 if norm == "linf" else 4
        levels = np.array([1 - i / 19 for i in range(10)])
        expected = (np.rint(levels * 255) / 255 if dtype == "uint8" else levels) * scale
        assert [asked for asked, _ in found.trace] == list(range(1, 11))
        assert [length for _, length in found.trace] == pytest.approx(expected.tolist(), rel=1e-6)


def test_an_iterate_counts_where_the_profile_says_so() -> None:
    (best,) = outcomes(Walk(), [task(1)], Plane())
    (iterate,) = outcomes(Walk(result="iterate"), [task(1)], Plane())
    assert len(iterate.trace) == 1
    assert best.distance < iterate.distance


@dataclass(frozen=True)
class Retreat:
    """Goes away from the image again, telling each iterate."""

    name: ClassVar[str] = "retreat"
    norm: Norm = "l2"
    result: Result = "iterate"

    def search(self, problem: Problem) -> Search:
        for level in (0.8, 0.7, 0.9):
            point = np.full(SIZE, level, np.float32)
            if (yield from fools(point)):
                problem.keep(point)


def test_an_iterate_that_moves_away_is_the_later_one() -> None:
    (found,) = outcomes(Retreat(), [task(0, checkpoints=(2,))], Plane())
    at = [distance_at(found, queries) for queries in (0, 1, 2, 3, 60)]
    assert at[0] == float("inf")
    assert at[2] < at[1] < at[3] == at[4] == found.distance
    (frame,) = found.checkpoints.values()
    assert frame is not None
    assert frame[0, 0, 0] == np.float32(0.8)  # the iterate told on the second answer came after it


def test_a_failing_attack_is_an_outcome_and_stops_nobody() -> None:
    found = outcomes(Walk(raises=True, result="iterate"), [task(i) for i in range(3)], Plane())
    assert [outcome.status for outcome in found] == [Status.FOUND] * 3
    without = [task(0, starts=np.zeros((0, SIZE), np.float32), target=2), task(1)]
    none, found_one = outcomes(Walk(ends=True), without, Plane(classes=3))
    assert none.status is Status.NONE
    assert none.distance == float("inf")
    assert found_one.status is Status.FOUND


@dataclass(frozen=True)
class Crash:
    name: ClassVar[str] = "crash"
    norm: Norm = "l2"
    result: Result = "best"

    def search(self, problem: Problem) -> Search:
        yield from fools(problem.clean)
        raise ZeroDivisionError("planted")


def test_an_attack_that_crashes_says_why() -> None:
    (found,) = outcomes(Crash(), [task(0)], Plane())
    assert (found.status, found.reason) == (Status.FAILED, "ZeroDivisionError: planted")
    assert found.queries == 1


@dataclass(frozen=True)
class Idle:
    name: ClassVar[str] = "idle"
    norm: Norm = "l2"
    result: Result = "best"

    def search(self, problem: Problem) -> Search:
        while True:
            yield problem.starts[:0]


def test_an_attack_that_asks_nothing_for_ever_is_ended() -> None:
    (found,) = outcomes(Idle(), [task(0)], Plane())
    assert (found.status, found.reason) == (Status.FAILED, "the attack asks nothing and does not end")
    assert found.queries == 0


class Moody(Plane):
    """Answers a single frame otherwise than in a batch: what no honest device does."""

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        return super().labels(frames) * (len(frames) > 1)


def test_the_harness_asks_the_sample_again_by_itself() -> None:
    found = outcomes(Walk(), [task(i) for i in range(4)], Moody())
    assert all(outcome.status is Status.FAILED for outcome in found[:3])
    assert all("asked alone" in outcome.reason for outcome in found[:3])


def test_a_spent_device_ends_the_searches_with_what_they_have() -> None:
    counted = Counted(Plane(), budget=100)
    found = outcomes(Walk(), [task(i, queries=60) for i in range(4)], counted)
    assert counted.queries <= 100
    assert any(outcome.status is Status.FOUND for outcome in found)
    assert len(found) == 4 or {outcome.status for outcome in found} <= {Status.FOUND, Status.FAILED}


def test_a_device_spent_before_the_judgement_leaves_the_last_answer() -> None:
    (found,) = outcomes(Walk(), [task(0, queries=10)], Counted(Plane(), budget=9))
    assert (found.status, found.label, found.queries) == (Status.FOUND, None, 9)


def test_samples_are_asked_again_while_single_frames_fit_the_budget() -> None:
    """The last calls of four searches hold up to 32 frames; what they leave is enough for four samples."""
    counted = Counted(Plane(), budget=203)
    found = outcomes(Walk(), [task(i, queries=60) for i in range(4)], counted)
    assert {(outcome.status, outcome.label) for outcome in found} == {(Status.FOUND, 1)}
    assert sum(outcome.queries for outcome in found) == counted.queries <= 203
    assert {outcome.queries for outcome in found} != {60}


def test_images_that_a_spent_device_never_saw_are_told() -> None:
    with pytest.raises(LimitError, match="not begun"):
        outcomes(Walk(), [task(i) for i in range(40)], Counted(Plane(), budget=100))


def test_a_budget_refuses_a_call_whole() -> None:
    counted = Counted(Plane(), budget=3)
    frames = np.zeros((2, *SHAPE), np.float32)
    counted.labels(frames)
    with pytest.raises(LimitError):
        counted.labels(frames)
    assert (counted.queries, counted.calls, counted.left) == (2, 1, 1)
    with pytest.raises(MisuseError):
        Counted(Plane(), budget=-1)


def test_frames_and_points_are_each_others_inverse() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_frames(to_points(every), "uint8"), every)
    assert to_frames(np.array([-1.0, 0.5, 2.0]), "float32").tolist() == [0, 0.5, 1]


def test_an_image_that_does_not_fit_is_misuse() -> None:
    wrong = Plane(shape=(1, 2, 2))
    with pytest.raises(MisuseError):
        list(run(Walk(), [task(0)], wrong))
    with pytest.raises(MisuseError):
        list(run(Walk(), [task(0)], Plane(), width=0))


@pytest.mark.parametrize(("queries", "marks"), [(0, ()), (-3, ()), (60, (0,)), (60, (5, 5)), (60, (9, 5))])
def test_a_task_that_makes_no_sense_is_misuse(queries: int, marks: tuple[int, ...]) -> None:
    with pytest.raises(MisuseError):
        outcomes(Walk(), [task(0, queries=queries, checkpoints=marks)], Plane())


def test_seeds_are_words() -> None:
    assert seeded("a", 1).integers(1 << 60) == seeded("a", 1).integers(1 << 60)
    assert len({int(seeded(*parts).integers(1 << 60)) for parts in (("a", 1), ("a", "1"), ("a1",), ("a", 1, 0))}) == 4


@dataclass(frozen=True)
class Off:
    """Asks a point that fools, then keeps one that does not (as ART's GeoDA may)."""

    name: ClassVar[str] = "off"
    norm: Norm = "l2"
    result: Result = "iterate"
    ends_on: float = 0.4

    def search(self, problem: Problem) -> Search:
        for level in (0.8, self.ends_on):
            point = np.full(SIZE, level, np.float32)
            yield from fools(point)
            problem.keep(point)
        while True:
            yield problem.starts


@pytest.mark.parametrize(("level", "status"), [(0.4, Status.FAILED), (0.6, Status.FOUND)])
def test_an_iterate_counts_without_a_judgement_only_where_it_was_seen_to_fool(level: float, status: Status) -> None:
    (found,) = outcomes(Off(ends_on=level), [task(0)], Counted(Plane(), 20))
    assert found.status is status
    assert (found.sample is not None) == (status is Status.FOUND)


CLEAN = np.full(SIZE, 0.25, np.float32)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"clean": CLEAN * np.float32(np.nan)}, "outside of"),
        ({"clean": CLEAN * 255}, "outside of"),
        ({"starts": -np.ones((1, SIZE), np.float32)}, "outside of"),
        ({"starts": np.ones((1, SIZE - 1), np.float32)}, "not pictures like"),
        ({"label": 2}, "none of the device's 2 classes"),
        ({"label": -1}, "none of the device's 2 classes"),
        ({"target": 2}, "none of the device's 2 classes"),
        ({"target": 0}, "own label"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(more: dict[str, Any], words: str) -> None:
    oracle = Plane()
    with pytest.raises(MisuseError, match=words):
        outcomes(Walk(), [task(0, **more)], oracle)
    assert oracle.sizes == []


def test_two_tasks_with_one_key_are_refused() -> None:
    with pytest.raises(MisuseError, match="two tasks have the key 3"):
        outcomes(Walk(), [task(3), task(3)], Plane())


@dataclass(frozen=True)
class Lost:
    """Asks for what is no number."""

    name: ClassVar[str] = "lost"
    norm: Norm = "l2"
    result: Result = "best"

    def search(self, problem: Problem) -> Search:
        if problem.clean[0] == CLEAN[0]:
            yield np.full((1, SIZE), np.nan, np.float32)
        yield problem.starts


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_point_that_is_no_number_ends_its_own_search_alone(dtype: str) -> None:
    lost, other = outcomes(Lost(), [task(0, clean=CLEAN), task(1)], Plane(dtype=dtype))
    assert (lost.status, lost.queries) == (Status.FAILED, 0)
    assert "not finite" in lost.reason
    assert other.status is Status.FOUND


class Liar(Plane):
    """Answers well until it is asked alone."""

    def labels(self, frames: NDArray[Any]) -> Any:
        if len(frames) > 1:
            return super().labels(frames)
        return self.answer

    answer: Any = np.zeros(0, np.int64)


@pytest.mark.parametrize("answer", [np.zeros(0, np.int64), [[1]], np.array([2]), np.array([-1]), np.array([0.5])])
def test_a_device_that_answers_what_are_no_labels_is_refused(answer: Any) -> None:
    device = Liar()
    device.answer = answer

    @dataclass(frozen=True)
    class Pairs(Walk):
        def search(self, problem: Problem) -> Search:
            yield np.repeat(problem.starts, 2, axis=0)

    with pytest.raises(RefusedError) as refused:
        outcomes(Pairs(), [task(0)], device)
    assert refused.value.refusal is Refusal.MALFORMED


class Grudging(Plane):
    """Refuses every other call."""

    error: VariegateError = LimitError("not now", retry_after_s=1.0)

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        out = super().labels(frames)
        if len(self.sizes) % 2:
            raise self.error
        return out


def test_what_a_device_refuses_is_not_counted_and_costs_no_budget() -> None:
    frames = np.zeros((4, *SHAPE), np.float32)
    for error, each in (
        (LimitError("not now", retry_after_s=1.0), 0),
        (RefusedError(Refusal.INPUT, "no picture"), 0),
        (DeviceError("lost"), 4),
    ):
        device = Grudging()
        device.error = error
        counted = Counted(device, 8)
        with pytest.raises(type(error)):
            counted.labels(frames)
        assert counted.queries == each
        counted.labels(frames)
        assert counted.queries == each + 4
