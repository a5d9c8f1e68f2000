"""The story, chapter by chapter. It computes and returns data; printing and pages are others' work."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from variegate.demo import tell
from variegate.demo.attack import Found, Labels, hop_skip_jump
from variegate.demo.cars import BUYERS, Fleet, Model, export_model, fleet, frames
from variegate.demo.results import OVERSHOOTS, Attacked, Curve, overshoot
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
STARTS = 30
"""Pictures of other signs that a search may start from."""
_SPARE = 400  # labels of the budget kept for looking at results
_ROAD, _OWN = 10_000, 20_000  # first frames of the drive and of the attacker's own pictures
_WORKERS = 2
_MAX_QUERIES = 1_000_000


class Stepper(Protocol):
    """Counts steps done."""

    def advance(self, steps: int = 1) -> None: ...  # noqa: D102


Progress = Callable[[str, int | None], AbstractContextManager[Stepper]]
"""Called as `progress(label, total)`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the demo may be told.

    Attributes:
        seed: Of all that is drawn, except keys.
        signs: Signs to attack.
        queries: Labels for each.

    Raises:
        MisuseError: When one is out of its range.
    """

    seed: int = 0
    signs: int = 6
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
    """Everything that happened, filled in while it is told."""

    options: Options
    chapters: list[Chapter] = field(default_factory=list)
    attacked: list[Attacked] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    _bare: list[tuple[NDArray[np.uint8], int, Found]] = field(default_factory=list)

    def run(self, progress: Progress) -> Iterator[Chapter]:
        """Tells the story; each chapter comes when it is done.

        Raises:
            VariegateError: When a part of the product refuses what it should not.
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
                    "queries": a.found.queries,
                    "l2": a.found.distance if a.read else None,
                    "distances": a.found.distances,
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
        budget = DRIVEN + options.signs * options.queries + _SPARE
        with tempfile.TemporaryDirectory() as name, fleet(model, seller, Path(name), budget) as cars:
            yield tell.delivery(cars)
            road = frames(options.seed, _ROAD, DRIVEN)
            drive = _drive(model, cars, road.images)
            yield tell.drive(drive, road.labels)
            images, truths = _choose(drive, road.images, road.labels, options.signs)
            before = cars.cars[0].enclave.status().remaining
            self._attack(model, cars, images, truths, progress)
            yield tell.attack(self.attacked, cars.cars[0].enclave.status(), before, options.queries)
            self._show(model, cars)
            yield tell.read(self.attacked)
            yield tell.curves(self.curves)
            yield tell.spent(cars.cars[0].enclave.status().remaining or 0, _ask_too_much(cars, images[0]))
        self._trace(model, seller, progress)
        yield tell.trace(self.verdicts, BUYERS["A"])

    def _attack(
        self, model: Model, cars: Fleet, images: NDArray[np.uint8], truths: NDArray[np.int64], progress: Progress
    ) -> None:
        """Searches on car A, and on the network without Variegate."""
        total = self.options.queries
        share = max(200, total // CONTRAST_SHARE)
        with progress("attacking, queries", len(images) * (total + share)) as steps:
            own = self._searches(cars.cars[0].labels, images, truths, total, steps)
            bare = self._searches(model.base_labels, images, truths, share, steps)
        self._bare = [(i, t, f) for i, t, f in zip(images, truths.tolist(), bare, strict=True)]
        readers = {**{car.name: car.labels for car in cars.cars}, "base": model.base_labels}
        for image, truth, found in zip(images, truths.tolist(), own, strict=True):
            read = {}
            if found.adversarial is not None:
                read = {name: int(labels(found.adversarial[np.newaxis])[0]) for name, labels in readers.items()}
            self.attacked.append(Attacked(image, truth, found, read))

    def _searches(
        self, labels: Labels, images: NDArray[np.uint8], truths: NDArray[np.int64], queries: int, steps: Stepper
    ) -> list[Found]:
        """One search for each image; the outcome does not depend on how many run at once."""
        lock = threading.Lock()
        pictures = frames(self.options.seed, _OWN, 2 * STARTS)

        def counted(batch: NDArray[np.uint8]) -> NDArray[np.int64]:
            answers = labels(batch)
            with lock:
                steps.advance(len(batch))
            return answers

        def search(index: int) -> Found:
            truth = int(truths[index])
            return hop_skip_jump(
                counted,
                images[index],
                truth,
                queries=queries,
                rng=np.random.default_rng([self.options.seed, index]),
                start=pictures.images[pictures.labels != truth][:STARTS],
            )

        with ThreadPoolExecutor(_WORKERS) as pool:
            return list(pool.map(search, range(len(images))))

    def _show(self, model: Model, cars: Fleet) -> None:
        """Stretches what was found, and lets all cars read it."""
        own = [(a.clean, a.truth, a.found) for a in self.attacked]
        readers: dict[str, Labels] = {car.name: car.labels for car in cars.cars}
        self.curves["with"] = _curve(own, readers)
        self.curves["without"] = _curve(self._bare, {"base": model.base_labels, **readers})

    def _trace(self, model: Model, seller: Seller, progress: Progress) -> None:
        """Looks at the samples under every registered buyer's keys."""
        registered = [*BUYERS.values(), *(f"buyer {i:04}" for i in range(1, REGISTERED + 1))]
        buyers = [(buyer, 0) for buyer in registered]
        sets = {
            "with": [(a.truth, a.found) for a in self.attacked],
            "without": [(truth, found) for _, truth, found in self._bare],
        }
        with progress("tracing, copies", 2 * len(buyers)) as steps:
            for name, results in sets.items():
                samples = [
                    Sample(f.adversarial, f.label, truth)
                    for truth, f in results
                    if f.adversarial is not None and f.label is not None
                ]
                if samples:
                    self.verdicts[name] = trace(model.release, seller, samples, buyers, steps.advance)


def _drive(model: Model, cars: Fleet, images: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
    answers = {car.name: car.labels(images) for car in cars.cars}
    return {**answers, "base": model.base_labels(images)}


def _choose(
    drive: dict[str, NDArray[np.int64]], images: NDArray[np.uint8], labels: NDArray[np.int64], count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first sign of each kind that every car and the base read rightly, in the order of the road."""
    right = np.all([answers == labels for answers in drive.values()], axis=0)
    kinds, first = np.unique(labels[right], return_index=True)
    if len(kinds) < count:
        raise MisuseError(f"only {len(kinds)} kinds of sign came past and were read rightly", hint="lower --signs")
    rows = np.flatnonzero(right)[np.sort(first)[:count]]
    return images[rows], labels[rows]


def _curve(samples: list[tuple[NDArray[np.uint8], int, Found]], readers: dict[str, Labels]) -> Curve:
    fooled = {name: [0] * len(OVERSHOOTS) for name in readers}
    have = [(c, t, f.adversarial) for c, t, f in samples if f.adversarial is not None]
    for clean, truth, adversarial in have:
        stretched = np.stack([overshoot(clean, adversarial, s) for s in OVERSHOOTS])
        for name, labels in readers.items():
            for i, wrong in enumerate(labels(stretched) != truth):
                fooled[name][i] += int(wrong)
    return Curve(len(have), {name: tuple(counts) for name, counts in fooled.items()})


def _ask_too_much(cars: Fleet, image: NDArray[np.uint8]) -> str:
    """What car A answers when asked for one label more than is left."""
    enclave = cars.cars[0].enclave
    count = (enclave.status().remaining or 0) + 1
    try:
        enclave.classify_batch(np.broadcast_to(image, (count, *image.shape)))
    except (LimitError, RefusedError) as error:
        return error.message
    return "answered"
