"""Smoothing sees through planted ripples, gives the same whatever the batch, and counts every vote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from variegate.attack.adaptive.smoothing import Smoothed
from variegate.attack.algorithms.table import from_config
from variegate.attack.driver import Task, outcomes
from variegate.attack.oracle import Counted, Oracle, to_frames, to_points
from variegate.attack.outcome import Outcome, Status
from variegate.attack.search import Problem, seeded
from variegate.keys.errors import LimitError, MisuseError

SHAPE, SIZE = (3, 8, 8), 192
PERIOD, STRENGTH, MARGIN = 0.05, 0.3, 0.25
WAY, RIPPLE = np.linalg.qr(np.random.default_rng(3).standard_normal((SIZE, 2)))[0].T
CLEAN = (0.5 + MARGIN * WAY).astype(np.float32)


class Rippled:
    """A plane through the middle grey, and along another direction ripples that are stronger than the clean margin."""

    shape, classes, batch = SHAPE, 2, 256

    def __init__(self, strength: float = STRENGTH, dtype: str = "float32") -> None:
        self.strength, self.dtype = strength, dtype

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        assert len(frames) <= self.batch
        flat = to_points(frames).reshape(len(frames), SIZE).astype(np.float64)
        phase = flat @ RIPPLE / PERIOD
        wave = 4 * np.abs(phase - np.floor(phase) - 0.5) - 1
        out: NDArray[np.int64] = ((flat - 0.5) @ WAY + self.strength * wave > 0).astype(np.int64)
        return out


def trough() -> NDArray[np.float64]:
    """A point beside the clean image in the trough of a ripple, where only the ripple fools."""
    along = CLEAN + np.linspace(0, PERIOD, 50)[:, np.newaxis] * RIPPLE
    fooled = Rippled().labels(along.astype(np.float32).reshape(-1, *SHAPE)) == 0
    out: NDArray[np.float64] = along[fooled].mean(axis=0)
    return out


def attacked(oracle: Oracle, queries: int) -> Outcome:
    problem = Problem(
        clean=CLEAN,
        shape=SHAPE,
        label=1,
        starts=np.stack([0.5 - 0.5 * WAY, trough()]).astype(np.float32),
        queries=queries,
        rng=seeded("smoothing"),
    )
    # A label costs 25 queries when smoothed, so that the few there are go into one good estimate.
    (found,) = outcomes(from_config("hopskipjump", "corrected", {"first": 100}), [Task(key=0, problem=problem)], oracle)
    assert found.status is Status.FOUND
    return found


def beyond(sample: NDArray[Any]) -> NDArray[np.float32]:
    """The sample taken twice as far, (1, C, H, W)."""
    out: NDArray[np.float32] = (2 * sample.reshape(-1) - CLEAN).reshape(1, *SHAPE)
    return out


def test_it_sees_through_planted_ripples() -> None:
    base = Rippled(strength=0)
    sample = attacked(Rippled(), 1500).sample
    assert sample is not None
    near = float(np.linalg.norm(sample.reshape(-1) - CLEAN))
    assert near < 0.6 * MARGIN  # a ripple, which the base does not have
    assert base.labels(beyond(sample))[0] == 1
    smoothed = attacked(Smoothed(Rippled(), votes=25, sigma=PERIOD), 1500).sample
    assert smoothed is not None
    far = float(np.linalg.norm(smoothed.reshape(-1) - CLEAN))
    assert 0.8 * MARGIN < far < 2 * MARGIN
    # Noise rounds the boundary; the way on is the base's.
    assert base.labels(beyond(smoothed))[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_answers_depend_on_the_frame_alone(dtype: str) -> None:
    points = CLEAN + np.random.default_rng(0).normal(0, 0.05, (60, SIZE)).astype(np.float32) - 0.2 * WAY
    frames = to_frames(points.reshape(-1, *SHAPE).astype(np.float32), dtype)
    device = Rippled(dtype=dtype)
    one = Smoothed(device, votes=7, sigma=PERIOD)
    labels = np.concatenate([one.labels(frames[i : i + 20]) for i in range(0, 60, 20)])
    assert 0 < labels.sum() < 60
    assert (one.dtype, one.batch, one.queries) == (dtype, 256 // 7, 420)
    other = Smoothed(device, votes=7, sigma=PERIOD)
    order = np.random.default_rng(1).permutation(60)
    assert np.array_equal([other.labels(frames[i : i + 1])[0] for i in order], labels[order])
    third = Smoothed(device, votes=7, sigma=PERIOD, seed=1)
    assert not np.array_equal(np.concatenate([third.labels(frames[i : i + 20]) for i in range(0, 60, 20)]), labels)


def test_votes_are_what_the_device_counts() -> None:
    device = Counted(Rippled(), budget=300 * 4)
    smoothed = Smoothed(device, votes=300, sigma=0.1)  # more than one call holds
    assert smoothed.batch == 1
    for _ in range(4):
        smoothed.labels(CLEAN.reshape(1, *SHAPE))
    assert smoothed.queries == device.queries == 1200
    with pytest.raises(LimitError):
        smoothed.labels(CLEAN.reshape(1, *SHAPE))
    assert smoothed.queries == device.queries == 1200


def test_without_noise_it_is_the_device() -> None:
    frames = np.random.default_rng(0).random((30, *SHAPE), np.float32)
    assert np.array_equal(Smoothed(Rippled(), votes=1, sigma=0).labels(frames), Rippled().labels(frames))
    for votes, sigma, seed in ((0, 0.1, 0), (3, -0.1, 0), (3, float("nan"), 0), (3, float("inf"), 0), (3, 0.1, -1)):
        with pytest.raises(MisuseError):
            Smoothed(Rippled(), votes=votes, sigma=sigma, seed=seed)
