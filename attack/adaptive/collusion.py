"""Collusion by labels: k buyers pool their copies, and look for samples that the copies agree on.

Assumes that the attackers own k devices of the fleet and know nothing of seeds or rewriter. What belongs to one copy
alone is outvoted, or averaged away; what is left is the base's, which victims share.

- `Vote`: the attack sees the answer of most copies.
- `Unanimous` and `fool_all`: the attack sees success only where every copy is fooled.
- `combined`: the mean or median of samples that were found on each copy by itself; `firmest` then takes them as far as
  the attackers' copies need.

A label of an ensemble costs a query on each of the k devices, side by side: k times the queries, in the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from variegate.attack import driver
from variegate.attack.lane import Task
from variegate.attack.oracle import Oracle, ask_all, to_frames, to_points
from variegate.attack.outcome import Outcome
from variegate.attack.overshoot import OVERSHOOTS, stretched
from variegate.attack.search import Attack
from variegate.keys.errors import MisuseError

Method = Literal["mean", "median"]


class _Joint:
    """What ensembles of devices share (`Oracle` less its labels)."""

    def __init__(self, oracles: Sequence[Oracle]) -> None:
        if not oracles:
            raise MisuseError("colluders need at least one device")
        if len({(oracle.shape, oracle.dtype, oracle.classes) for oracle in oracles}) > 1:
            raise MisuseError("colluders' devices differ in shape, dtype or classes")
        self._oracles = tuple(oracles)
        self.shape, self.dtype, self.classes = oracles[0].shape, oracles[0].dtype, oracles[0].classes
        self.batch = min(oracle.batch for oracle in oracles)

    def each(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels of each device, int64 (k, N)."""
        return np.stack([oracle.labels(frames) for oracle in self._oracles])


class Vote(_Joint):
    """The label that most of the devices give (`Oracle`); among equals, that of the earliest device.

    Args:
        oracles: The colluders' devices, alike in shape, dtype and classes.

    Raises:
        MisuseError: None, or unlike devices.
    """

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """See `Oracle`."""
        each = self.each(frames)
        votes = (each[:, np.newaxis] == each).sum(axis=0)
        out: NDArray[np.int64] = each[votes.argmax(axis=0), np.arange(each.shape[1])]
        return out


class Unanimous(_Joint):
    """Success only where all devices agree on it (`Oracle`).

    Args:
        oracles: The colluders' devices, alike in shape, dtype and classes.
        label: Of the clean image: answered as long as one device answers it.
        target: For targeted attacks: answered only where all devices answer it.

    Raises:
        MisuseError: None, or unlike devices.
    """

    def __init__(self, oracles: Sequence[Oracle], label: int, target: int | None = None) -> None:
        super().__init__(oracles)
        self._label, self._target = label, target

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """See `Oracle`."""
        each = self.each(frames)
        won = (each != self._label).all(axis=0) if self._target is None else (each == self._target).all(axis=0)
        out: NDArray[np.int64] = np.where(won, each[0], self._label)
        return out


def fool_all(attack: Attack, tasks: Sequence[Task], oracles: Sequence[Oracle]) -> list[Outcome]:
    """Searches samples that fool every one of the colluders' devices; outcomes in the order of the tasks.

    Raises:
        MisuseError, RefusedError, DeviceError, LimitError: As `driver.outcomes`.
    """
    groups: dict[tuple[int, int | None], list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.problem.label, task.problem.target), []).append(task)
    found: dict[int, Outcome] = {}
    for (label, target), group in groups.items():
        joint = Unanimous(oracles, label, target)
        found |= {outcome.key: outcome for outcome in driver.outcomes(attack, group, joint)}
    return [found[task.key] for task in tasks]


def combined(samples: NDArray[Any], method: Method, dtype: str) -> NDArray[Any]:
    """Pixel by pixel, the mean or the median of samples for one image or for many.

    Args:
        samples: (k, ...), one for each colluder, frames of either dtype.
        method: Which.
        dtype: Of the result.

    Raises:
        MisuseError: There is no such method, or no sample.
    """
    if method not in {"mean", "median"} or not len(samples):
        raise MisuseError("the mean or the median of at least one sample can be taken")
    points = to_points(samples)
    middle: NDArray[Any] = points.mean(axis=0) if method == "mean" else np.median(points, axis=0)
    return to_frames(middle, dtype)


def firmest(
    clean: NDArray[Any],
    samples: NDArray[Any],
    classes: NDArray[np.int64],
    oracles: Sequence[Oracle],
    overshoots: Sequence[float] = OVERSHOOTS,
) -> NDArray[Any]:
    """Takes each sample just as far as it must go to fool most of the colluders' devices.

    A mean of samples often lies short of every boundary. For each image the least overshoot is taken at which the
    greatest number of the attackers' devices are fooled.

    Args:
        clean: Clean frames (N, *shape).
        samples: Frames, likewise.
        classes: int64 (N,), what the clean frames show.
        oracles: The colluders' devices.
        overshoots: What is tried, ascending; a query for each on each device.

    Returns:
        Frames (N, *shape).
    """
    tried = np.stack([stretched(clean, samples, s, oracles[0].dtype) for s in overshoots])
    flat = tried.reshape(-1, *clean.shape[1:])
    fooled = sum((ask_all(oracle, flat).reshape(len(overshoots), -1) != classes).astype(np.int64) for oracle in oracles)
    # argmax gives the first of equals, and so the least overshoot.
    best = np.asarray(fooled).argmax(axis=0)
    out: NDArray[Any] = tried[best, np.arange(len(clean))]
    return out
