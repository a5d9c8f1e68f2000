"""Collusion by labels: k buyers pool their copies, and look for samples that the copies agree on.

Assumes that the attackers own k devices of the fleet and know nothing of seeds or rewriter. What belongs to one copy
alone is outvoted, or averaged away; what is left is the base's, which victims share.

- `Agreement`: a search sees success only where the first copy is fooled, and most or all of the others with it.
- `combined`: the mean or median of samples that were found on each copy by itself; `firmest` then takes them as far as
  the attackers' copies need.

`Colluders` is the strategy that campaigns and `attack try` know. `Vote`, the answer of most copies, is the base's own
answer where each copy is disturbed in its own way (`partner.recover`).

A label of an ensemble costs a query on each of the k devices, side by side: k times the queries, in the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from variegate.attack import driver
from variegate.attack.algorithms.table import CORRECTED, DEFAULTS, SearchKind
from variegate.attack.lane import Task
from variegate.attack.oracle import Oracle, ask_all, to_frames, to_points
from variegate.attack.outcome import Outcome
from variegate.attack.overshoot import OVERSHOOTS, stretched
from variegate.attack.search import Attack, Norm
from variegate.attack.strategy import charged, clean_frames, judged, own_labels
from variegate.keys.errors import MisuseError

Method = Literal["mean", "median"]
MOST_DEVICES = 64
"""As many as a campaign's worker keeps open."""


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


class Agreement(_Joint):
    """Success only where the first device and enough of the others agree on it (`Oracle`).

    Args:
        oracles: The colluders' devices, alike in shape, dtype and classes.
        label: Of the clean image: answered as long as too few devices are fooled.
        target: For targeted attacks: answered only where enough devices answer it.
        least: How many devices must be fooled, the first among them; None for all.
    """

    def __init__(
        self, oracles: Sequence[Oracle], label: int, target: int | None = None, least: int | None = None
    ) -> None:
        super().__init__(oracles)
        self._label, self._target, self._least = label, target, len(oracles) if least is None else least

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """See `Oracle`."""
        each = self.each(frames)
        fooled = each != self._label if self._target is None else each == self._target
        enough = fooled[0] & (fooled.sum(axis=0) >= self._least)
        out: NDArray[np.int64] = np.where(enough, each[0], self._label)
        return out


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


@dataclass(frozen=True, kw_only=True)
class Colluders:
    """Owners of several copies who pool them (`strategy.Strategy`), profile `corrected`.

    Attributes:
        devices: How many copies they own.
        agreement: "most" and "all" search once, over what so many copies agree on; "mean" and "median" search on each
            copy by itself, and combine the samples.
        search: The search.
    """

    devices: int = 2
    agreement: Literal["most", "all", "mean", "median"] = "most"
    search: SearchKind = "hopskipjump"
    name: ClassVar[str] = "colluders"
    profile: ClassVar[str] = CORRECTED

    def __post_init__(self) -> None:
        if not 2 <= self.devices <= MOST_DEVICES:  # noqa: PLR2004
            raise MisuseError(f"devices must be 2 to {MOST_DEVICES}")

    @property
    def norm(self) -> Norm:
        """The search's."""
        return self._attack.norm

    @property
    def pooled(self) -> bool:
        """Whether samples are combined at the end."""
        return self.agreement in get_args(Method)

    @property
    def targets(self) -> bool:
        """Whether it can aim: what is combined cannot."""
        return not self.pooled

    def outcomes(self, tasks: Sequence[Task], own: Sequence[Oracle], pictures: NDArray[Any]) -> Iterator[Outcome]:  # noqa: ARG002
        """See `strategy.Strategy`."""
        if self.agreement in ("mean", "median"):
            yield from self._combined(self.agreement, tasks, own)
            return
        least = len(own) if self.agreement == "all" else len(own) // 2 + 1
        groups: dict[tuple[int, int | None], list[Task]] = {}
        for task in tasks:
            groups.setdefault((task.problem.label, task.problem.target), []).append(task)
        for (label, target), group in groups.items():
            yield from driver.run(self._attack, group, Agreement(own, label, target, least))

    @property
    def _attack(self) -> Attack:
        return DEFAULTS[self.search, CORRECTED]()

    def _combined(self, method: Method, tasks: Sequence[Task], own: Sequence[Oracle]) -> Iterator[Outcome]:
        """Searches on each copy by itself, with labels left over for `firmest` and the judgement."""
        rest, _ = charged(tasks, len(tasks) * (len(OVERSHOOTS) + 1))
        generators = [task.problem.rng.spawn(len(own)) for task in rest]
        queries = np.zeros(len(rest), np.int64)
        clean = clean_frames(rest, own[0].dtype)
        each = []
        for i, device in enumerate(own):
            part = [
                replace(task, checkpoints=(), problem=replace(task.problem, rng=rng[i]))
                for task, rng in zip(rest, generators, strict=True)
            ]
            ends = driver.outcomes(self._attack, part, device)
            each.append([frame if end.sample is None else end.sample for end, frame in zip(ends, clean, strict=True)])
            queries = np.maximum(queries, [end.queries for end in ends])
        middle = combined(np.array(each), method, own[0].dtype)
        frames = firmest(clean, middle, own_labels(rest), own)
        for task, frame, label, labels in zip(tasks, frames, ask_all(own[0], frames), queries, strict=True):
            yield judged(task, frame, int(label), int(labels) + len(OVERSHOOTS) + 1, self.norm)
