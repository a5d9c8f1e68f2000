"""An attack on some images with one device. When it is stopped, it keeps its results, because queries cost budget."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.table import CORRECTED
from variegate.attack.kinds import from_config
from variegate.attack.lane import Task, task
from variegate.attack.oracle import Oracle, Wrapper, ask_all, to_frames, to_points
from variegate.attack.outcome import Outcome
from variegate.attack.overshoot import OVERSHOOTS, stretched
from variegate.attack.search import STARTS, Attack, seeded
from variegate.attack.strategy import Strategy, check_devices, run
from variegate.keys.errors import LimitError, MisuseError, VariegateError

_NOT_ASKED = -1
_SPENT = "the device's budget is spent"
"""The driver's reason for a search that it ended without a sample."""

Pictures = tuple[NDArray[Any], NDArray[np.int64]]
"""Frames, (n, C, H, W), and their classes, int64 (n,)."""


class Trial:
    """An attack on some images over one device, or over several of one attacker.

    Attributes:
        outcomes: By image, of those that are done, or were under way when the device or a person stopped the trial.
        labels: What the first device says of the clean images, int64 (N,), as far as it was asked.
        queries: Labels that the devices gave: the clean images' and the searches'.
        spent: Whether the device's budget ended searches, or did not let a sample be asked again by itself.
        attack: The attack.
        frames: Clean frames.
        true: Classes of the images, int64 (N,), or None when they are not known.
    """

    def __init__(
        self,
        own: Oracle | Sequence[Oracle],
        attack: Attack | Strategy,
        frames: NDArray[Any],
        true: NDArray[np.int64] | None = None,
        *,
        queries: int,
        seed: int = 0,
        starts: Pictures | None = None,
        pictures: NDArray[Any] | None = None,
    ) -> None:
        """Asks nothing yet.

        Args:
            own: The device, or the attacker's devices: as many as the attack needs. Samples are judged on the first.
            attack: The attack.
            frames: Clean frames, (N, C, H, W) of the device's dtype.
            true: Their classes, int64 (N,), where they are known.
            queries: Labels for each image, the clean one's among them.
            seed: Of all randomness.
            starts: Pictures that searches may start from; None for the other images.
            pictures: What a strategy may ask about beside the images, frames of the device's; None for the images.

        Raises:
            MisuseError: The attack is for more devices, or for fewer.
        """
        self._own = tuple(own) if isinstance(own, Sequence) else (own,)
        check_devices(attack, self._own)
        self._each, self._seed, self._starts = queries, seed, starts
        self._pictures = frames if pictures is None else pictures
        self._stop = _Stop()
        self.attack, self.frames, self.true = attack, frames, true
        self.outcomes: dict[int, Outcome] = {}
        self.labels = np.empty(0, np.int64)
        self.queries = 0
        self.spent = False

    def run(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """Asks for clean labels and runs the searches; one label of each image's budget is the clean one's.

        An error of the device, or a KeyboardInterrupt during a query, first ends all searches with their best points,
        and is then raised.

        Args:
            progress: Called with the number of labels of each call.

        Raises:
            LimitError, RefusedError, DeviceError, MisuseError: As `driver.run`.
            KeyboardInterrupt: A person stopped it.
        """
        stop, watched = self._stop, [_Watched(oracle, self, self._stop, progress) for oracle in self._own]
        size = self._own[0].batch
        for i in range(0, len(self.frames), size):
            part = watched[0].labels(self.frames[i : i + size])
            self.labels = np.concatenate([self.labels, part])
        stop.ends_searches = True
        try:
            for outcome in run(self.attack, self._tasks(), watched, self._pictures):
                stopped = stop.error is not None and outcome.reason == _SPENT
                self.outcomes[outcome.key] = replace(outcome, reason="stopped") if stopped else outcome
        except LimitError:
            if stop.error is None:
                raise
        if stop.error is not None:
            raise stop.error

    def misread(self, key: int) -> bool:
        """Whether the device reads an image wrongly when it is clean: nothing needs to fool it then."""
        return self.true is not None and int(self.true[key]) != int(self.labels[key])

    @property
    def judged(self) -> list[Outcome]:
        """Outcomes of images that the device reads rightly, as far as classes are known."""
        return [one for key, one in sorted(self.outcomes.items()) if not self.misread(key)]

    def archive(self) -> bytes:
        """The results as an .npz: images by number, their clean frames and samples, labels, distances, queries.

        The label is -1 if a sample fooled the device but could not be asked again alone: the trial was stopped, or the
        device's budget was spent.
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
        pictures, classes = (self.frames, self.labels) if self._starts is None else self._starts
        for key, (frame, label) in enumerate(zip(self.frames, self.labels.tolist(), strict=True)):
            others = np.flatnonzero(classes != label)
            drawn = seeded(self._seed, self.attack.name, key, "starts").permutation(others)[:STARTS]
            rng = seeded(self._seed, self.attack.name, key)
            yield task(key, frame, label, starts=pictures[drawn], queries=self._each - 1, rng=rng)


@dataclass
class _Stop:
    """What ends a trial early.

    Attributes:
        ends_searches: Whether errors look like a spent budget to the driver, which ends searches with what they have.
        error: The error that did, or the interruption; no device is asked after it.
    """

    ends_searches: bool = False
    error: VariegateError | KeyboardInterrupt | None = None


class _Watched(Wrapper):
    """A device, what it answered counted and shown (`attack.oracle.Oracle`)."""

    def __init__(self, oracle: Oracle, trial: Trial, stop: _Stop, progress: Callable[[int], None]) -> None:
        super().__init__(oracle)
        self._trial, self._stop, self._progress = trial, stop, progress

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        if self._stop.error is not None:
            raise LimitError("stopped")
        try:
            labels = self._oracle.labels(frames)
        except (VariegateError, KeyboardInterrupt) as error:
            # The driver itself handles a spent budget.
            spent = isinstance(error, LimitError) and error.retry_after_s is None
            self._trial.spent |= spent
            if spent or not self._stop.ends_searches:
                raise
            self._stop.error = error
            raise LimitError("stopped") from error
        self._trial.queries += len(frames)
        self._progress(len(frames))
        return labels


def attack_images(
    own: Oracle | Sequence[Oracle],
    attack: Attack | Strategy | str,
    images: NDArray[Any],
    labels: NDArray[np.int64] | None = None,
    *,
    queries: int = 2000,
    seed: int = 0,
    starts: Pictures | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Trial:
    """Attacks images over one device, or over several of one attacker, by labels alone.

    Args:
        own: The device (`open_oracle` opens one by its name), or the attacker's devices where the attack needs several.
        attack: The kind of an attack (`attack.kinds.NAMES`) with its defaults, or a configured one.
        images: (N, C, H, W), uint8, or float32 in 0..1.
        labels: Their classes, int64 (N,), where they are known.
        queries: Labels for each image, the clean one's among them; at least 2.
        seed: Of all randomness.
        starts: Pictures that searches may start from, with their classes; None for the other images.
        progress: Called with the number of labels of each call.

    Raises:
        MisuseError: Images or labels do not fit the device, or there is no such attack.
        LimitError, RefusedError, DeviceError: The device's; a `Trial` of one's own keeps the samples found until then.
    """
    if queries < 2:  # noqa: PLR2004
        raise MisuseError("an attack needs at least two queries for each image")
    chosen = from_config(attack, CORRECTED, {}) if isinstance(attack, str) else attack
    frames = fitting(images, labels, own[0] if isinstance(own, Sequence) else own)
    trial = Trial(own, chosen, frames, labels, queries=queries, seed=seed, starts=starts)
    trial.run(progress)
    return trial


def fitting(images: NDArray[Any], labels: NDArray[np.int64] | None, oracle: Oracle) -> NDArray[Any]:
    """Images as frames of a device, which has their classes.

    Raises:
        MisuseError: They do not fit.
    """
    if images.shape[1:] != oracle.shape:
        raise MisuseError(f"the images are {images.shape[1:]}, and the device takes {oracle.shape}")
    if labels is not None and len(labels) and labels.max() >= oracle.classes:
        raise MisuseError(f"an image is of class {labels.max()}, and the device has {oracle.classes}")
    return images if images.dtype == oracle.dtype else to_frames(to_points(images), oracle.dtype)


@dataclass(frozen=True)
class Replay:
    """Samples shown to devices.

    Attributes:
        samples: How many were shown.
        overshoots: Factors s by which their perturbations were stretched.
        fooled: Device -> samples that it reads as another class than the clean image, for each factor.
        read: Device -> clean images of the samples that it reads rightly; the others are not among `fooled`.
    """

    samples: int
    overshoots: tuple[float, ...]
    fooled: Mapping[str, tuple[int, ...]]
    read: Mapping[str, int]


def replay(trial: Trial, oracles: Mapping[str, Oracle], overshoots: Sequence[float] = OVERSHOOTS) -> Replay:
    """Shows a trial's samples to other devices, with the perturbation scaled by each factor.

    Args:
        trial: A trial that has run.
        oracles: Devices by name.
        overshoots: Factors s.

    Raises:
        MisuseError: A factor below 0.
        LimitError, RefusedError, DeviceError: A device's.
    """
    outcomes = [one for one in trial.judged if one.sample is not None]
    keys = [one.key for one in outcomes]
    clean, classes = trial.frames[keys], (trial.labels if trial.true is None else trial.true)[keys]
    samples = np.stack([one.sample for one in outcomes if one.sample is not None]) if outcomes else clean
    fooled, read = {}, {}
    for name, oracle in oracles.items():
        right = ask_all(oracle, fitting(clean, None, oracle)) == classes
        read[name] = int(right.sum())
        shown = (stretched(clean, samples, s, oracle.dtype) for s in overshoots)
        fooled[name] = tuple(int((right & (ask_all(oracle, frames) != classes)).sum()) for frames in shown)
    return Replay(len(outcomes), tuple(overshoots), fooled, read)
