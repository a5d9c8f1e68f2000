"""Verifies a finished campaign: ledger against shards, these against inputs, stored samples against copies asked again.

What a search asked and met on its way (`queries`, `trace_queries`, `trace_distance`, and when a sample of a budget was
found) only the search itself could tell again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from variegate.attack.campaign import folder as folders
from variegate.attack.campaign import rows
from variegate.attack.campaign.check import against_shards, rows_of
from variegate.attack.campaign.copies import FleetCopies, Opener, open_device_oracle
from variegate.attack.campaign.ledger import DONE, Ledger, UnitEntry
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.replay import Answer
from variegate.attack.campaign.shards import KEYS, Rows
from variegate.attack.campaign.software import mixed
from variegate.attack.campaign.units import Unit
from variegate.attack.campaign.work import Bench
from variegate.attack.oracle import to_frames, to_points
from variegate.attack.outcome import Outcome, Status
from variegate.attack.search import distance, seeded
from variegate.keys.errors import MisuseError, VariegateError

_REPLAY_KEYS = ("budget", "overshoot", "victim", "label", "clean_label", "l2", "linf")
_ROUNDING = 1e-9
"""Relative: of sums whose terms a machine may add in another order."""
MOST_TOLD = 10_000
"""Differences that copies and columns give rise to, of which more are only counted."""
_SHOWN_BYTES = 64 << 20
"""Frames that are made before they are shown; more only for one image."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verification found.

    Attributes:
        units: Units of the campaign.
        done: Of them done: only these are verified.
        samples: Samples asked again.
        replays: Replays asked again.
        differences: What differs, one sentence each.
        mixed: What differs between the software that worked on it; empty when it was one.
        not_asked: Fleets of devices that there was no leave to ask.
    """

    units: int
    done: int
    samples: int
    replays: int
    differences: tuple[str, ...]
    mixed: str = ""
    not_asked: tuple[str, ...] = ()


def verify(
    folder: Path,
    *,
    sample: int | None = None,
    opened: Opener | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Verdict:
    """Verifies a campaign, which may be a stranger's: it goes to no device that the campaign names, unless it is told.

    Args:
        folder: The campaign's.
        sample: Images to ask again, drawn by the campaign's seed; None for all.
        opened: Opens the devices that the campaign names; None for none, so that only copies in it are asked.
        progress: Told of units done, and their number.

    Raises:
        MisuseError: It is no campaign, or `sample` is negative.
        RefusedError: `MALFORMED`: the ledger or an input is damaged, so that nothing can be compared.
        DeviceError: Storage failed. What a copy does not answer is a difference.
    """
    if sample is not None and sample < 0:
        raise MisuseError("a number of samples cannot be negative")
    with Ledger(folder, write=False) as ledger:
        prepared = folders.read(folder, ledger.meta)
        differences = against_shards(folder, ledger, prepared.campaign)
        entries, mixture = ledger.entries(), mixed(ledger.meta)
    done = [entry for entry in entries if entry.state == DONE]
    wanted = _drawn(prepared, done, sample)
    again = _Again(folder, prepared, opened)
    try:
        for i, entry in enumerate(done):
            again.unit(entry, wanted[entry.unit.name])
            progress(i + 1, len(done))
    finally:
        again.close()
    left = again.told - len(again.differences)
    unlisted = [f"{left} more differences are not listed"] if left else []
    return Verdict(
        units=len(entries),
        done=len(done),
        samples=again.samples,
        replays=again.replays,
        differences=tuple(dict.fromkeys([*differences, *again.differences, *unlisted])),
        mixed=mixture,
        not_asked=again.not_asked,
    )


def _drawn(prepared: Prepared, done: list[UnitEntry], sample: int | None) -> dict[str, set[int]]:
    """Places within their units of the images to ask again."""
    every = [(entry.unit.name, i) for entry in done for i in range(len(entry.unit.images))]
    if sample is not None and sample < len(every):
        order = seeded(prepared.campaign.seed, "verify").permutation(len(every))[:sample]
        every = [every[i] for i in order]
    out: dict[str, set[int]] = {entry.unit.name: set() for entry in done}
    for name, i in every:
        out[name].add(i)
    return out


class _Again:
    """Derives again what follows from the inputs, and asks the copies again."""

    def __init__(self, folder: Path, prepared: Prepared, opened: Opener | None) -> None:
        self._folder, self._prepared = folder, prepared
        self._bench = Bench(prepared, opened=opened or open_device_oracle)
        self.not_asked = tuple(fleet.name for fleet in prepared.fleets if fleet.devices and opened is None)
        self._silent = set(self.not_asked)
        self.samples = self.replays = self.told = 0
        self.differences: list[str] = []

    def close(self) -> None:
        """Closes the copies."""
        self._bench.close()

    def unit(self, entry: UnitEntry, places: set[int]) -> None:
        """One unit; its images at these places are shown to the copies."""
        try:
            samples = rows_of(self._folder, folders.SAMPLES, entry)
            replays = rows_of(self._folder, folders.REPLAYS, entry)
            if len(samples) != len(entry.unit.images):
                return  # the ledger's check has told of it
            stored = list(samples)
            outcomes = [_outcome(row, self._prepared, entry) for row in stored]
        except (VariegateError, ValueError, TypeError, KeyError) as error:
            words = error.message if isinstance(error, VariegateError) else f"{entry.unit.name} has damaged rows"
            self._tell(words)
            return
        for difference in _unfounded(self._prepared, entry, stored, replays, outcomes):
            self._tell(difference)
        fleet = entry.unit.fleet
        if not places or fleet in self._silent:
            return
        chosen = [outcome if i in places else _without(outcome) for i, outcome in enumerate(outcomes)]
        try:
            self._samples(entry, chosen)
            own = self._replays(entry, chosen, places, replays)
            for difference in self._misjudged(entry, stored, own):
                self._tell(difference)
        except VariegateError as error:
            self._silent.add(fleet)
            self._tell(f"{entry.unit.name}: fleet {fleet} is asked no more: {error.message}")

    def _samples(self, entry: UnitEntry, outcomes: list[Outcome]) -> None:
        oracle = self._bench.copies.oracle(entry.unit.fleet, entry.unit.attacker)
        for outcome, image in zip(outcomes, entry.unit.images, strict=True):
            if outcome.sample is None:
                continue
            self.samples += 1
            label = int(oracle.labels(outcome.sample[np.newaxis])[0])
            if label != outcome.label:
                place = int(self._prepared.images.index[image])
                self._tell(f"{entry.unit.name}: the sample of image {place} is answered {label}, not {outcome.label}")

    def _replays(self, entry: UnitEntry, outcomes: list[Outcome], places: set[int], stored: Rows) -> dict[int, int]:
        """Replays again; what the attacker's own copy says of the clean images, by their place in the unit."""
        unit, index = entry.unit, self._prepared.images.index
        by_image = {int(index[unit.images[i]]) for i in places}
        stored_rows, due = sum(row["image"] in by_image for row in stored), self._bench.due(unit, outcomes)
        if due != stored_rows:
            # Not made: a few samples may be said to be shown a thousand million times.
            self._tell(f"{unit.name}: {stored_rows} replays are stored, and {due} are due")
            return {}
        rest = (row for row in stored if row["image"] in by_image)
        own: dict[int, int] = {}
        for group in self._groups(outcomes):
            for answer in self._bench.replays(unit, group, _fleet(self._prepared, entry).dtype):
                self.replays += 1
                self._compare(unit, answer, next(rest))
                if answer.victim == unit.attacker:
                    own[answer.shown.image] = answer.clean_label
        return own

    def _groups(self, outcomes: list[Outcome]) -> Iterator[list[Outcome]]:
        """The outcomes a few at a time, in place of all others nothing: what is shown of all may not fit in memory."""
        shown, begins = 0, 0
        for i, outcome in enumerate(outcomes):
            frames = [frame for frame in (outcome.sample, *outcome.checkpoints.values()) if frame is not None]
            shown += sum(frame.nbytes for frame in frames) * len(self._prepared.campaign.replay.overshoots)
            if shown > _SHOWN_BYTES or i == len(outcomes) - 1:
                yield [one if begins <= j <= i else _without(one) for j, one in enumerate(outcomes)]
                shown, begins = 0, i + 1

    def _compare(self, unit: Unit, answer: Answer, row: Mapping[str, Any]) -> None:
        shown, index = answer.shown, self._prepared.images.index
        values = (shown.budget, shown.overshoot, answer.victim, answer.label, answer.clean_label, shown.l2, shown.linf)
        image = int(index[unit.images[shown.image]])
        for key, value in zip(("image", *_REPLAY_KEYS), (image, *values), strict=True):
            if row[key] != value:
                self._tell(
                    f"{unit.name}: replay of image {row['image']} on copy {row['victim']} at s = "
                    f"{row['overshoot']}: {key} is {value}, not {row[key]}"
                )

    def _misjudged(self, entry: UnitEntry, stored: list[dict[str, Any]], own: Mapping[int, int]) -> Iterator[str]:
        """Targets, and samples that are called found, against what the attacker's own copy says of the clean image."""
        unit, index = entry.unit, self._prepared.images.index
        for i, clean in own.items():
            row, place = stored[i], int(index[unit.images[i]])
            target = self._bench.target(unit, unit.images[i], clean)
            if row["target"] != target:
                yield f"{unit.name}: image {place} is aimed at {row['target']}, not {target}"
            fooled = row["label"] != clean if target is None else row["label"] == target
            if row["status"] == Status.FOUND and not fooled:
                yield f"{unit.name}: the sample of image {place} is answered {row['label']}, and called found"

    def _tell(self, difference: str) -> None:
        self.told += 1
        if self.told <= MOST_TOLD:
            self.differences.append(difference)


def _unfounded(
    prepared: Prepared,
    entry: UnitEntry,
    stored: Sequence[Mapping[str, Any]],
    replays: Rows,
    outcomes: Sequence[Outcome],
) -> Iterator[str]:
    """What a unit's shards say that does not follow from the inputs and the samples, one sentence for each column."""
    unit = entry.unit
    columns = rows.given(prepared, unit)
    dtype, norm = columns["dtype"][0], columns["norm"][0]
    clean = to_points(to_frames(to_points(prepared.images.x[list(unit.images)]), dtype))
    lengths = [
        math.inf
        if outcome.sample is None
        else float(distance(to_points(outcome.sample).reshape(1, -1), clean[i].reshape(-1), norm)[0])
        for i, outcome in enumerate(outcomes)
    ]
    for name, values in columns.items():
        if [row[name] for row in stored] != values:
            yield f"{unit.name}: {name} of the samples is not what the campaign says"
    told = [math.nan if row["distance"] is None else row["distance"] for row in stored]
    if not all(math.isclose(one, length, rel_tol=_ROUNDING) for one, length in zip(told, lengths, strict=True)):
        yield f"{unit.name}: distance of the samples is not theirs"
    if any((row["status"] == Status.FOUND) != (row["sample"] is not None) for row in stored):
        yield f"{unit.name}: status of the samples does not fit them"
    by_image = dict(zip(columns["image"], stored, strict=True))
    wrong: set[str] = set()
    for row in replays:
        own = by_image.get(row["image"])
        wrong |= {name for name in KEYS if own is None or row[name] != own[name]}
    yield from (f"{unit.name}: {name} of the replays is not that of the samples" for name in KEYS if name in wrong)


def _outcome(row: Mapping[str, Any], prepared: Prepared, entry: UnitEntry) -> Outcome:
    """A stored row as an outcome, as far as replays need one."""
    fleet = _fleet(prepared, entry)

    def frame(raw: bytes | None) -> Any:
        return None if raw is None else np.frombuffer(raw, fleet.dtype).reshape(fleet.shape)

    return Outcome(
        key=row["image"],
        status=Status(row["status"]),
        reason=row["reason"],
        sample=frame(row["sample"]),
        label=row["label"],
        distance=row["distance"],
        queries=row["queries"],
        trace=(),
        checkpoints=dict(zip(row["budgets"], map(frame, row["budget_samples"]), strict=True)),
    )


def _without(outcome: Outcome) -> Outcome:
    return Outcome(
        key=outcome.key,
        status=Status.NONE,
        reason="",
        sample=None,
        label=None,
        distance=float("inf"),
        queries=0,
        trace=(),
        checkpoints={},
    )


def _fleet(prepared: Prepared, entry: UnitEntry) -> FleetCopies:
    return next(fleet for fleet in prepared.fleets if fleet.name == entry.unit.fleet)
