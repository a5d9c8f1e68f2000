"""CGBA, SurFree and RayS on half-spaces and balls, whose nearest points are known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.peers.meter import Meter, SpentError
from testbed.zoo.data import require_data
from tests.support.outcomes import distance_at
from variegate.attack.algorithms.cgba import Cgba
from variegate.attack.algorithms.circle import Circle
from variegate.attack.algorithms.rays import Rays
from variegate.attack.algorithms.surfree import SurFree
from variegate.attack.driver import outcomes
from variegate.attack.lane import Task
from variegate.attack.oracle import Counted, Oracle, to_points
from variegate.attack.outcome import Outcome, Status
from variegate.attack.search import Attack, Problem, seeded
from variegate.keys.errors import MisuseError

SHAPE = (3, 8, 8)
SIZE = 192
ATTACKS: tuple[Attack, ...] = (Cgba(), Cgba(boundary="curved"), SurFree(), Rays())
L2 = ATTACKS[:3]


@dataclass
class World:
    """Label 1 beyond a plane at a distance from the image (`half`), or outside a ball around it; 2 never."""

    kind: str
    dtype: str = "float32"
    batch: int = 64
    shape: tuple[int, int, int] = SHAPE
    classes: int = 3
    away: float = 0.3
    normal: NDArray[np.float64] = field(default_factory=lambda: unit("normal"))
    clean: NDArray[np.float32] = field(default_factory=lambda: image())  # noqa: PLW0108  it is defined below

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        moves = to_points(frames).reshape(len(frames), -1).astype(np.float64) - self.clean
        if self.kind == "half":
            beyond = moves @ self.normal > self.away
        elif self.kind == "inside":  # a small region far away: what a target class is
            beyond = np.linalg.norm(moves - self.normal, axis=1) < 1 - self.away
        else:
            beyond = np.full(len(moves), fill_value=False)
        return beyond.astype(np.int64)

    @property
    def linf(self) -> float:
        """Distance of the plane in Linf."""
        return float(self.away / np.abs(self.normal).sum())


def unit(name: str) -> NDArray[np.float64]:
    drawn = seeded("surface", name).normal(size=SIZE)
    return np.asarray(drawn / np.linalg.norm(drawn), np.float64)


def image() -> NDArray[np.float32]:
    return np.asarray(np.rint(seeded("surface", "image").uniform(100, 155, SIZE)) / 255, np.float32)


def search(attack: Attack, world: Oracle, count: int = 3, queries: int = 3000, **more: Any) -> list[Outcome]:
    start = np.clip(image() + unit("normal"), 0, 1).astype(np.float32)[np.newaxis]
    given: dict[str, Any] = {"starts": start, **more}
    tasks = [
        Task(
            key=i,
            problem=Problem(clean=image(), shape=SHAPE, label=0, queries=queries, rng=seeded("surface", i), **given),
        )
        for i in range(count)
    ]
    return outcomes(attack, tasks, world)


def noisy_start() -> NDArray[np.float32]:
    """Beyond the plane, but nowhere near its nearest point."""
    side = unit("side")
    side -= (side @ unit("normal")) * unit("normal")
    return np.clip(image() + 0.5 * unit("normal") + 3 * side, 0, 1).astype(np.float32)[np.newaxis]


def median(found: Sequence[Outcome]) -> float:
    assert all(outcome.status is Status.FOUND for outcome in found)
    return float(np.median([outcome.distance for outcome in found]))


@pytest.mark.parametrize(
    ("attack", "dtype", "within"),
    [
        (Cgba(), "float32", 1.08),
        (Cgba(), "uint8", 1.1),
        (Cgba(boundary="curved"), "float32", 1.1),
        (SurFree(), "float32", 1.15),
        (SurFree(), "uint8", 1.3),
    ],
)
def test_the_nearest_point_of_a_half_space_is_found(attack: Attack, dtype: str, within: float) -> None:
    world = World("half", dtype)
    found = search(attack, world, starts=noisy_start())
    assert world.away * 0.98 < median(found) < within * world.away, median(found)
    assert all(distance_at(outcome, 60) > 2 * world.away for outcome in found)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_rays_finds_the_signs_of_a_plane(dtype: str) -> None:
    world = World("half", dtype, away=1.0)
    found = search(Rays(), world, queries=2500)
    print([o.queries for o in found], world.linf, [o.distance for o in found], [o.status for o in found])
    assert world.linf * 0.98 < median(found) < 1.1 * world.linf + 1 / 255, median(found)


@pytest.mark.parametrize("attack", L2)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_target_in_a_ball_is_approached(attack: Attack, dtype: str) -> None:
    world = World("inside", dtype)
    side = unit("side") - (unit("side") @ world.normal) * world.normal
    start = np.asarray(world.clean + world.normal + 0.65 * side / np.linalg.norm(side), np.float32)
    found = search(attack, world, target=1, starts=start[np.newaxis])
    assert world.away < median(found) < 1.4 * world.away
    assert all(outcome.trace[0][1] > 3 * world.away for outcome in found)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_device_that_never_changes_its_mind_ends_the_search(attack: Attack) -> None:
    for queries in (5, 400):
        counted = Counted(World("never"))
        none = np.empty((0, SIZE), np.float32)
        (found,) = search(attack, counted, count=1, queries=queries, starts=none)
        assert found.status is Status.NONE
        assert found.queries == counted.queries <= queries


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_search_repeats_and_keeps_its_budget(attack: Attack, dtype: str) -> None:
    first, again = (search(attack, World("half", dtype, away=0.6), queries=300) for _ in range(2))
    assert [outcome.trace for outcome in first] == [outcome.trace for outcome in again]
    assert all(outcome.queries <= 300 for outcome in first)
    assert all(outcome.sample is not None and outcome.sample.dtype == dtype for outcome in first)


def test_rays_has_no_target() -> None:
    with pytest.raises(MisuseError):
        search(Rays(), World("half"), target=1)


def test_a_device_of_bytes_ends_rays_by_itself() -> None:
    found = search(Rays(), World("half", "uint8", away=0.02), queries=100_000)
    assert all(outcome.queries < 10_000 for outcome in found)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cgba(first=0),
        lambda: Cgba(sigma=0),
        lambda: Cgba(tolerance=float("nan")),
        lambda: Cgba(boundary="bent"),  # type: ignore[arg-type]
        lambda: Cgba(noises=0),
        lambda: SurFree(theta=90),
        lambda: SurFree(tries=0),
        lambda: SurFree(rho=1),
        lambda: SurFree(halvings=0),
        lambda: SurFree(block=0),
        lambda: SurFree(tolerance=0),
        lambda: Rays(tolerance=1),
        lambda: Rays(openings=0),
    ],
)
def test_fields_are_checked(make: Any) -> None:
    with pytest.raises(MisuseError):
        make()


@pytest.mark.parametrize("attack", ATTACKS)
def test_profiles_are_named(attack: Any) -> None:
    made = type(attack).corrected()
    assert (made.profile, made.result) == ("corrected", "best")


def test_a_circle_has_right_angles_over_its_diameter() -> None:
    rng = seeded("circle")
    clean, point, direction = (rng.random(50, np.float32) for _ in range(3))
    circle = Circle.through(clean, point, direction / np.linalg.norm(direction))
    assert circle is not None
    assert np.allclose(circle.at(0), point, atol=1e-5)
    for angle in (0.1, 0.7, 1.5):
        there = circle.at(angle)
        assert abs(float((there - clean) @ (there - point))) < 1e-5
        assert np.linalg.norm(there - clean) == pytest.approx(circle.radius * np.cos(angle), rel=1e-4, abs=1e-5)
    assert Circle.through(clean, clean, direction) is None
    along = (point - clean) / np.linalg.norm(point - clean)
    assert Circle.through(clean, point, np.zeros(50, np.float32)) is None
    parallel = Circle.through(clean, point, along)
    assert parallel is None or parallel.angle < 1e-3


def test_a_meter_stops_at_the_budget_and_keeps_the_nearest() -> None:
    world = World("half")
    meter = Meter(world.labels, budget=5)
    clean = image().reshape(1, *SHAPE)
    meter.begin(clean, np.zeros(1, np.int64))
    moves = np.asarray([0.6, 0.2, 0.4], np.float32)[:, np.newaxis] * world.normal.astype(np.float32)
    frames = (image() + moves).reshape(3, *SHAPE)
    assert meter.labels(frames.astype(np.float64)).tolist() == [1, 0, 1]
    assert meter.best[0] == pytest.approx(0.4, rel=1e-4)
    with pytest.raises(SpentError):
        meter.labels(frames[[1, 0, 0]])
    assert meter.queries == 5
    in_step = Meter(world.labels, budget=2)
    in_step.begin(np.repeat(clean, 3, axis=0), np.zeros(3, np.int64))
    in_step.labels(frames)
    assert np.isinf(in_step.best).tolist() == [False, True, False]
    in_step.labels(frames)
    with pytest.raises(SpentError):
        in_step.labels(frames)
    assert in_step.queries == 6


PROMISED = (
    {f"{k}_{n}" for k in ("forward_share", "of_raw", "vs_art", "vs_foolbox") for n in ("resnet20", "gtsrb")}
    | {"median_l2_2000_ours", "median_l2_2000_best_peer", "two_processes_speedup_resnet20"}
    | {f"peak_rss_mib_{toolkit}" for toolkit in ("ours", "art", "foolbox")}
)


@pytest.mark.slow
@pytest.mark.data
def test_the_benchmark_runs_small_and_writes_its_figures(tmp_path: Path) -> None:
    require_data()
    out, root = tmp_path / "result.json", Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "benchmarks.attack", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(out.read_text())["figures"]) >= PROMISED
