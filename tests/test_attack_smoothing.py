"""Smoothing sees through planted ripples, gives the same whatever the batch, and counts every vote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.algorithms.smoothed import Smoothed
from variegate.attack.driver import outcomes
from variegate.attack.lane import task
from variegate.attack.oracle import Counted, Oracle, to_points
from variegate.attack.outcome import Outcome, Status
from variegate.attack.search import Attack, seeded
from variegate.keys.errors import MisuseError

SHAPE, SIZE = (3, 8, 8), 192
PERIOD, STRENGTH, MARGIN = 0.05, 0.3, 0.25
WAY, RIPPLE = np.linalg.qr(np.random.default_rng(3).standard_normal((SIZE, 2)))[0].T
CLEAN = (0.5 + MARGIN * WAY).astype(np.float32)


class Rippled:
    """A plane through the middle grey, and along another direction ripples that are stronger than the clean margin."""

    shape, classes = SHAPE, 2
    batch = 256

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


def attacked(attack: Attack, oracle: Oracle, queries: int) -> Outcome:
    starts = np.stack([0.5 - 0.5 * WAY, trough()]).astype(np.float32).reshape(2, *SHAPE)
    search = task(0, CLEAN.reshape(SHAPE), 1, starts=starts, queries=queries, rng=seeded("smoothing"))
    (one,) = outcomes(attack, [search], oracle)
    assert one.status is Status.FOUND
    return one


def beyond(sample: NDArray[Any]) -> NDArray[np.float32]:
    """The sample taken twice as far, (1, C, H, W)."""
    out: NDArray[np.float32] = (2 * sample.reshape(-1) - CLEAN).reshape(1, *SHAPE)
    return out


def test_it_sees_through_planted_ripples() -> None:
    base = Rippled(strength=0)
    sample = attacked(HopSkipJump(), Rippled(), 1500).sample
    assert sample is not None
    near = float(np.linalg.norm(sample.reshape(-1) - CLEAN))
    assert near < 0.6 * MARGIN  # a ripple, which the base does not have
    assert base.labels(beyond(sample))[0] == 1
    smoothed = attacked(Smoothed(votes=25, sigma=PERIOD), Rippled(), 40_000).sample
    assert smoothed is not None
    far = float(np.linalg.norm(smoothed.reshape(-1) - CLEAN))
    assert 0.8 * MARGIN < far < 2 * MARGIN
    # Noise rounds the boundary; the way on is the base's.
    assert base.labels(beyond(smoothed))[0] == 0


def test_every_vote_is_counted_and_the_same_whatever_the_batch() -> None:
    device = Counted(Rippled())
    one = attacked(Smoothed(votes=5, sigma=PERIOD), device, 1000)
    assert one.queries == device.queries <= 1000
    small = Rippled()
    small.batch = 7
    again = attacked(Smoothed(votes=5, sigma=PERIOD), small, 1000)
    assert again.sample is not None
    assert one.sample is not None
    np.testing.assert_array_equal(again.sample, one.sample)


@pytest.mark.parametrize("field", [{"votes": 0}, {"sigma": -0.1}, {"sigma": float("nan")}, {"wide": 0.0}])
def test_settings_that_make_no_sense(field: dict[str, Any]) -> None:
    with pytest.raises(MisuseError, match=next(iter(field))):
        Smoothed(**field)
