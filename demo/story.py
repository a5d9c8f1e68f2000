"""The story, chapter by chapter. It returns data; other modules print it and write the page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from variegate.attack import Replay, Trial, attack_images, replay
from variegate.attack.oracle import Oracle, ask_all
from variegate.attack.oracles.vehicle import VehicleOracle, driving
from variegate.demo import tell
from variegate.demo.cars import BUYERS, Fleet, Model, export_model, fleet, frames
from variegate.demo.results import OVERSHOOTS, Attacked
from variegate.demo.tell import Chapter
from variegate.device_sim.world.signs import SIGNS
from variegate.forensics import Sample, Verdict, trace
from variegate.keys.errors import LimitError, MisuseError, RefusedError
from variegate.keys.seller import Seller

DRIVEN = 200
"""Signs that each car drives past."""
REGISTERED = 1000
"""Buyers besides the three: registered, with keys, innocent."""
CONTRAST_SHARE = 4
"""The search on the unprotected network gets one in so many of the queries; it needs no more."""
STARTS = 60
"""Pictures of her own, of which a search starts from some of other signs."""
_SPARE = 400  # labels of the budget kept for looking at results
_ROAD, _OWN = 10_000, 20_000  # first frames of the drive and of the attacker's own pictures
_MAX_QUERIES = 1_000_000
_DARK = 70  # mean grey level


class Stepper(Protocol):
    """Counts steps done."""

    def advance(self, steps: int = 1) -> None:
        """Counts steps."""
        ...


Progress = Callable[[str, int | None], AbstractContextManager[Stepper]]
"""Called as `progress(label, total)`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the demo.

    Attributes:
        seed: Of all that is drawn, except keys.
        signs: Signs to attack.
        queries: Labels for each.

    Raises:
        MisuseError: When one is out of its range.
    """

    seed: int = 0
    signs: int = 14
    queries: int = 8000

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 32:
            raise MisuseError("--seed is a whole number from 0 to 4294967295")
        if not 1 <= self.signs <= len(SIGNS):
            raise MisuseError(f"--signs is 1 to {len(SIGNS)}, the kinds of sign in this world")
        if not 200 <= self.queries <= _MAX_QUERIES:  # noqa: PLR2004
            raise MisuseError(f"--queries is 200 to {_MAX_QUERIES}")


@dataclass
class Story:
    """Everything that happened, filled in chapter by chapter."""

    options: Options
    chapters: list[Chapter] = field(default_factory=list)
    attacked: list[Attacked] = field(default_factory=list)
    curves: dict[str, Replay] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    _trials: dict[str, Trial] = field(default_factory=dict)

    def run(self, progress: Progress) -> Iterator[Chapter]:
        """Tells the story; each chapter comes when it is done.

        Raises:
            VariegateError: When a part of the product refuses unexpectedly.
        """
        for chapter in self._tell(progress):
            self.chapters.append(chapter)
            yield chapter

    def summary(self) -> dict[str, object]:
        """What happened in JSON's types: options, every chapter's table, and the counts behind them."""
        return {
            "options": asdict(self.options),
            "chapters": [asdict(chapter) for chapter in self.chapters],
            "attack": [
                {
                    "shows": a.truth,
                    "read": a.read,
                    "queries": a.outcome.queries,
                    "l2": a.outcome.distance if a.read else None,
                    "distances": a.outcome.trace,
                }
                for a in self.attacked
            ],
            "overshoot": {"s": OVERSHOOTS, **{name: asdict(curve) for name, curve in self.curves.items()}},
            "trace": {
                name: {
                    "accused": verdict.accused,
                    "registered": len(verdict.suspects),
                    "classes": verdict.classes,
                    "first": [asdict(suspect) for suspect in verdict.suspects[:3]],
                }
                for name, verdict in self.verdicts.items()
            },
        }

    def _tell(self, progress: Progress) -> Iterator[Chapter]:
        options = self.options
        with progress("exporting", None):
            model = export_model(options.seed)
        yield tell.export(model)
        seller = Seller.generate()
        budget = 2 * DRIVEN + options.signs * options.queries + _SPARE
        with tempfile.TemporaryDirectory() as name, fleet(model, seller, Path(name), budget) as cars:
            yield tell.delivery(cars)
            road = frames(options.seed, _ROAD, DRIVEN)
            drive = _drive(model, cars, road.images)
            passed = {car.name: _past(car.labels, road.images, options.seed) for car in cars.cars}
            yield tell.drive(drive, passed, road.labels)
            images, truths = _choose(drive, road.images, road.labels, options.signs)
            before = cars.cars[0].enclave.status().remaining
            self._attack(model, cars, images, truths, progress)
            yield tell.attack(self.attacked, cars.cars[0].enclave.status(), before, options.queries)
            self._show(model, cars)
            yield tell.read(self.attacked, self._photographed(cars))
            yield tell.curves(self.curves)
            yield tell.spent(cars.cars[0].enclave.status().remaining or 0, _ask_too_much(cars, images[0]))
        self._trace(model, seller, progress)
        yield tell.trace(self.verdicts, BUYERS["A"])

    def _attack(
        self, model: Model, cars: Fleet, images: NDArray[np.uint8], truths: NDArray[np.int64], progress: Progress
    ) -> None:
        """Searches on car A, and on the network without Variegate; shows the samples to all cars."""
        total = self.options.queries
        share = max(200, total // CONTRAST_SHARE)
        drawn = frames(self.options.seed, _OWN, STARTS)
        with progress("attacking, queries", len(images) * (total + share)) as steps:
            own, bare = (
                attack_images(
                    oracle,
                    "hopskipjump",
                    images,
                    truths,
                    queries=queries,
                    seed=self.options.seed,
                    starts=(drawn.images, drawn.labels),
                    progress=steps.advance,
                )
                for oracle, queries in ((cars.cars[0].labels, total), (model.bare, share))
            )
        self._trials = {"with": own, "without": bare}
        readers: dict[str, Oracle] = {**{car.name: car.labels for car in cars.cars}, "base": model.bare}
        for key, (image, truth) in enumerate(zip(images, truths.tolist(), strict=True)):
            outcome, read = own.outcomes[key], {}
            if outcome.sample is not None:
                read = {name: int(oracle.labels(outcome.sample[np.newaxis])[0]) for name, oracle in readers.items()}
            self.attacked.append(Attacked(image, truth, outcome, read))

    def _show(self, model: Model, cars: Fleet) -> None:
        """Scales the samples, and lets all cars read them."""
        readers: dict[str, Oracle] = {car.name: car.labels for car in cars.cars}
        self.curves["with"] = replay(self._trials["with"], readers, OVERSHOOTS)
        self.curves["without"] = replay(self._trials["without"], {"base": model.bare, **readers}, OVERSHOOTS)

    def _photographed(self, cars: Fleet) -> dict[str, int]:
        """How many of the found pictures fool each car that drives past a print of it."""
        hits = [a for a in self.attacked if a.sample is not None]
        prints = np.stack([a.sample for a in hits if a.sample is not None]) if hits else None
        truths = np.array([a.truth for a in hits], np.int64)
        return {
            car.name: 0 if prints is None else int((_past(car.labels, prints, self.options.seed) != truths).sum())
            for car in cars.cars
        }

    def _trace(self, model: Model, seller: Seller, progress: Progress) -> None:
        """Looks at the samples under every registered buyer's keys."""
        registered = [*BUYERS.values(), *(f"buyer {i:04}" for i in range(1, REGISTERED + 1))]
        buyers = [(buyer, 0) for buyer in registered]
        with progress("tracing, copies", 2 * len(buyers)) as steps:
            for name, trial in self._trials.items():
                samples = [
                    Sample(one.sample, one.label, int(trial.labels[one.key]))
                    for one in trial.judged
                    if one.sample is not None and one.label is not None
                ]
                if samples:
                    self.verdicts[name] = trace(model.release, seller, samples, buyers, steps.advance)


def _drive(model: Model, cars: Fleet, images: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
    readers: dict[str, Oracle] = {**{car.name: car.labels for car in cars.cars}, "base": model.bare}
    return {name: ask_all(oracle, images) for name, oracle in readers.items()}


def _past(car: Oracle, prints: NDArray[np.uint8], seed: int) -> NDArray[np.int64]:
    """Labels of a car that drives past prints: each photographed once, from another place, in another light."""
    return ask_all(VehicleOracle(car, stand=driving, seed=seed), prints)


def _choose(
    drive: dict[str, NDArray[np.int64]], images: NDArray[np.uint8], labels: NDArray[np.int64], count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first sign of each kind that every car and the base read rightly, in the order of the road.

    Signs in the dark are left out where others are enough: a person should recognise them.
    """
    right = np.all([answers == labels for answers in drive.values()], axis=0)
    light = right & (images.mean(axis=(1, 2, 3)) > _DARK)
    if len(np.unique(labels[light])) >= count:
        right = light
    kinds, first = np.unique(labels[right], return_index=True)
    if len(kinds) < count:
        raise MisuseError(f"only {len(kinds)} kinds of sign came past and were read rightly", hint="lower --signs")
    rows = np.flatnonzero(right)[np.sort(first)[:count]]
    return images[rows], labels[rows]


def _ask_too_much(cars: Fleet, image: NDArray[np.uint8]) -> str:
    """Car A's answer to a query for one label more than its budget has."""
    enclave = cars.cars[0].enclave
    count = (enclave.status().remaining or 0) + 1
    try:
        enclave.classify_batch(np.broadcast_to(image, (count, *image.shape)))
    except (LimitError, RefusedError) as error:
        return error.message
    return "answered"
