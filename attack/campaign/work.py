"""Does one unit of work: attacks its images, shows what was found to the victims, and writes both shards to memory.

Nothing here depends on which worker does it, in which order, or whether an earlier one was killed: each image has its
own generator, and outcomes that are known already are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from variegate.attack.campaign import replay, rows, shards
from variegate.attack.campaign.config import AttackRun
from variegate.attack.campaign.copies import Copies, Opener, open_device_oracle
from variegate.attack.campaign.messages import (
    Event,
    ImageDone,
    Job,
    UnitDone,
    UnitFailed,
    outcome_from_bytes,
    outcome_to_bytes,
)
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.units import Unit, owned, victims
from variegate.attack.lane import Task, task
from variegate.attack.oracle import Counted, Wrapper, ask_all, to_frames, to_points
from variegate.attack.outcome import Outcome
from variegate.attack.search import seeded
from variegate.attack.strategy import is_pooled, run
from variegate.keys.errors import DeviceError, LimitError, VariegateError

_MAX_REASON = 500


class Bench:
    """A worker's place of work: the campaign, and the copies that it has opened."""

    def __init__(self, prepared: Prepared, *, opened: Opener = open_device_oracle) -> None:
        """Opens nothing yet.

        Args:
            prepared: The campaign.
            opened: Opens devices.
        """
        self._prepared = prepared
        self.copies = Copies(prepared.fleets, opened=opened)

    def close(self) -> None:
        """Closes the copies."""
        self.copies.close()

    def events(self, job: Job) -> Iterator[Event]:
        """Does a unit.

        Yields:
            An `ImageDone` for each image whose outcome was not known, then `UnitDone`; or `UnitFailed`.
        """
        # Sums of a matrix product depend on how many threads share it.
        with threadpool_limits(1):
            try:
                yield from self._events(job)
            except VariegateError as error:
                yield UnitFailed(unit=job.unit.name, reason=error.message[:_MAX_REASON])
            except MemoryError:
                yield UnitFailed(unit=job.unit.name, reason="out of memory")
            except Exception as error:  # noqa: BLE001  a fault in one unit must not end the campaign
                yield UnitFailed(unit=job.unit.name, reason=f"{type(error).__name__}: {error}"[:_MAX_REASON])

    def _events(self, job: Job) -> Iterator[Event]:
        unit, campaign, images = job.unit, self._prepared.campaign, self._prepared.images
        attack_run = campaign.attack(unit.attack)
        attack = attack_run.attack
        own = [Counted(_Unspent(self.copies.oracle(unit.fleet, copy))) for copy in owned(campaign, unit)]
        oracle = own[0]
        dtype, shape = oracle.dtype, oracle.shape
        places = list(unit.images)
        clean = to_frames(to_points(images.x[places]), dtype)
        labels = ask_all(oracle, clean)
        asked_before = oracle.queries
        # What is prepared for all images of a unit together is done for all of them, also after a kill.
        known = {} if is_pooled(attack) else job.known
        outcomes = {place: outcome_from_bytes(data, shape, dtype) for place, data in known.items()}
        targets = [self.target(unit, place, int(label)) for place, label in zip(places, labels, strict=True)]
        tasks = (
            self._task(unit, attack_run, place, int(label), target)
            for place, label, target in zip(places, labels, targets, strict=True)
            if place not in outcomes
        )
        queries = 0
        pictures = to_frames(to_points(images.pool_x), dtype)
        for outcome in run(attack, tasks, own, pictures):
            outcomes[outcome.key] = outcome
            queries += outcome.queries
            yield ImageDone(unit=unit.name, image=outcome.key, outcome=outcome_to_bytes(outcome))
        most = max(oracle.queries - asked_before, *(device.queries for device in own[1:]), 0)
        # Of combined samples each search counts as much as the longest of its image.
        if most > queries or (len(own) == 1 and most < queries):
            raise DeviceError(f"{most} labels were asked for and {queries} accounted for")
        ordered = [outcomes[place] for place in places]
        shown_to = victims(campaign, unit)
        answers = self.replays(unit, ordered, dtype)
        columns = rows.samples(self._prepared, unit, ordered, targets)
        yield UnitDone(
            unit=unit.name,
            samples=shards.to_bytes(shards.SAMPLES, columns),
            replays=shards.to_bytes(shards.REPLAYS, rows.replays(columns, answers)),
            samples_rows=len(ordered),
            replays_rows=len(answers),
            queries=sum(outcome.queries for outcome in ordered),
            clean_queries=len(places) * (1 + len(shown_to)),
            replay_queries=len(answers),
        )

    def due(self, unit: Unit, outcomes: list[Outcome]) -> int:
        """How many answers `replays` gives."""
        campaign = self._prepared.campaign
        return len(_shown(outcomes)) * len(campaign.replay.overshoots) * len(victims(campaign, unit))

    def replays(self, unit: Unit, outcomes: list[Outcome], dtype: str) -> list[replay.Answer]:
        """Shows the samples of a unit's outcomes, in the order of its images, to its victims.

        Raises:
            LimitError, RefusedError, DeviceError: As the copies.
        """
        campaign = self._prepared.campaign
        clean = self._prepared.images.x[list(unit.images)]
        return replay.answers(
            to_frames(to_points(clean), dtype),
            replay.frames_of(clean, _shown(outcomes), campaign.replay.overshoots, dtype),
            victims(campaign, unit),
            lambda victim: self.copies.oracle(unit.fleet, victim),
        )

    def _word(self, unit: Unit, place: int) -> tuple[str | int, ...]:
        """What all that is drawn for an image comes from."""
        index = int(self._prepared.images.index[place])
        return (self._prepared.campaign.seed, unit.fleet, unit.attacker, index, unit.attack)

    def _task(self, unit: Unit, attack: AttackRun, place: int, label: int, target: int | None) -> Task:
        images, word = self._prepared.images, self._word(unit, place)
        return task(
            place,
            images.x[place],
            label,
            target=target,
            starts=self._starts(word, attack.starts, label, target),
            queries=attack.queries,
            rng=seeded(*word),
            checkpoints=attack.budgets,
        )

    def target(self, unit: Unit, place: int, label: int) -> int | None:
        """The class that a unit's attack aims at: one of the pool other than the image's own; None for any.

        Args:
            unit: The unit.
            place: The image's, in the campaign's.
            label: What the copy attacked says of the clean image.

        Raises:
            DeviceError: No class is left.
        """
        if not self._prepared.campaign.attack(unit.attack).targeted:
            return None
        images = self._prepared.images
        others = np.setdiff1d(images.pool_y, [int(images.y[place]), label])
        if not len(others):
            raise DeviceError("no class is left to aim at: the data has too few")
        return int(seeded(*self._word(unit, place), "target").choice(others))

    def _starts(self, word: tuple[str | int, ...], count: int, label: int, target: int | None) -> NDArray[np.uint8]:
        images = self._prepared.images
        fit = np.flatnonzero(images.pool_y != label if target is None else images.pool_y == target)
        starts: NDArray[np.uint8] = images.pool_x[seeded(*word, "starts").permutation(fit)[:count]]
        return starts


def _shown(outcomes: list[Outcome]) -> list[tuple[int, int, NDArray[Any]]]:
    """Samples that are replayed: place of the image, budget, frame."""
    return [
        (i, budget, frame)
        for i, outcome in enumerate(outcomes)
        for budget, frame in [*sorted(outcome.checkpoints.items()), (0, outcome.sample)]
        if frame is not None
    ]


class _Unspent(Wrapper):
    """A copy whose budget must last (`Oracle`): an image that was half attacked is not kept as if that were all."""

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        try:
            return self._oracle.labels(frames)
        except LimitError as error:
            raise DeviceError(error.message) from error
