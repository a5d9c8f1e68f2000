"""What goes between the campaign and its workers, as CBOR: jobs one way, events the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cbor2
import numpy as np

from variegate.attack.campaign.units import Unit
from variegate.attack.outcome import Outcome, Status
from variegate.keys.errors import Refusal, RefusedError

_FAULTS = (cbor2.CBORError, LookupError, TypeError, ValueError, OverflowError, MemoryError, RecursionError)
_MAX_INTEGER = 1 << 63


@dataclass(frozen=True, kw_only=True)
class Job:
    """A unit to be done.

    Attributes:
        unit: The unit.
        known: Outcomes of its images that are there already, by the image's place.
    """

    unit: Unit
    known: Mapping[int, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class ImageDone:
    """One image's attack has ended.

    Attributes:
        unit: Name of the unit.
        image: Place in the campaign's images.
        outcome: `outcome_to_bytes`.
    """

    unit: str
    image: int
    outcome: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class UnitDone:
    """A unit has ended.

    Attributes:
        unit: Its name.
        samples: The shard.
        replays: The shard.
        samples_rows: Rows of it.
        replays_rows: Rows of it.
        queries: Labels that its attacks asked for.
        clean_queries: Labels of clean images, by the attacker and the victims.
        replay_queries: Labels of replayed samples.
    """

    unit: str
    samples: bytes = field(repr=False)
    replays: bytes = field(repr=False)
    samples_rows: int
    replays_rows: int
    queries: int
    clean_queries: int
    replay_queries: int


@dataclass(frozen=True, kw_only=True)
class UnitFailed:
    """A unit could not be done.

    Attributes:
        unit: Its name.
        reason: Why.
    """

    unit: str
    reason: str


Event = ImageDone | UnitDone | UnitFailed
_EVENTS: Mapping[str, type[ImageDone | UnitDone | UnitFailed]] = {
    kind.__name__: kind for kind in (ImageDone, UnitDone, UnitFailed)
}


def job_to_bytes(job: Job) -> bytes:
    """A job as CBOR."""
    return cbor2.dumps([vars(job.unit), dict(job.known)])


def job_from_bytes(data: bytes) -> Job:
    """Reads `job_to_bytes`; from the campaign's own process."""
    unit, known = cbor2.loads(data)
    return Job(unit=Unit(**{**unit, "images": tuple(unit["images"])}), known=known)


def event_to_bytes(event: Event) -> bytes:
    """An event as CBOR."""
    return cbor2.dumps([type(event).__name__, vars(event)])


def event_from_bytes(data: bytes) -> Event:
    """Reads `event_to_bytes`.

    Raises:
        RefusedError: `MALFORMED`.
    """
    try:
        kind, values = cbor2.loads(data)
        return _EVENTS[kind](**values)
    except _FAULTS as error:
        raise RefusedError(Refusal.MALFORMED, "a worker's message is damaged") from error


def outcome_to_bytes(outcome: Outcome) -> bytes:
    """An outcome as CBOR: what the ledger keeps until its unit has ended."""
    return cbor2.dumps(
        [
            outcome.key,
            outcome.status.value,
            outcome.reason,
            _raw(outcome.sample),
            outcome.label,
            outcome.distance,
            outcome.queries,
            [list(step) for step in outcome.trace],
            [[at, _raw(frame)] for at, frame in outcome.checkpoints.items()],
        ]
    )


def outcome_from_bytes(data: bytes, shape: tuple[int, int, int], dtype: str) -> Outcome:
    """Reads `outcome_to_bytes`.

    Raises:
        RefusedError: `MALFORMED`.
    """
    try:
        key, status, reason, sample, label, distance, queries, trace, checkpoints = cbor2.loads(data)
        plain = (key, queries, *([] if label is None else [label]), *(at for at, _ in [*trace, *checkpoints]))
        lengths = (distance, *(length for _, length in trace))
        # CBOR's tags make dates and numbers of any size.
        if not all(type(value) is int and abs(value) < _MAX_INTEGER for value in plain) or not (
            isinstance(reason, str) and all(type(value) in (int, float) for value in lengths)
        ):
            raise ValueError("values of other types")
        return Outcome(
            key=key,
            status=Status(status),
            reason=reason,
            sample=_frame(sample, shape, dtype),
            label=label,
            distance=distance,
            queries=queries,
            trace=tuple((asked, length) for asked, length in trace),
            checkpoints={at: _frame(frame, shape, dtype) for at, frame in checkpoints},
        )
    except _FAULTS as error:
        raise RefusedError(Refusal.MALFORMED, "an outcome in the ledger is damaged") from error


def _raw(frame: Any) -> bytes | None:
    return None if frame is None else np.ascontiguousarray(frame).tobytes()


def _frame(raw: bytes | None, shape: tuple[int, int, int], dtype: str) -> Any:
    return None if raw is None else np.frombuffer(raw, dtype).reshape(shape)
