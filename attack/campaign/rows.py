"""Rows of a unit's shards: what follows from the campaign, and what its searches and the copies answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.replay import Answer
from variegate.attack.campaign.shards import KEYS, Columns
from variegate.attack.campaign.units import Unit
from variegate.attack.outcome import Outcome


def given(prepared: Prepared, unit: Unit) -> dict[str, list[Any]]:
    """Columns of the samples' shard that follow from the campaign alone, a value for each image of the unit."""
    run, images, count = prepared.campaign.attack(unit.attack), prepared.images, len(unit.images)
    places = list(unit.images)
    dtype = next(fleet.dtype for fleet in prepared.fleets if fleet.name == unit.fleet)
    return {
        "fleet": [unit.fleet] * count,
        "attack": [unit.attack] * count,
        "profile": [run.profile] * count,
        "norm": [run.attack.norm] * count,
        "attacker": [unit.attacker] * count,
        "image": images.index[places].tolist(),
        "true_class": images.y[places].tolist(),
        "dtype": [dtype] * count,
        "budgets": [list(run.budgets)] * count,
    }


def samples(
    prepared: Prepared, unit: Unit, outcomes: Sequence[Outcome], targets: Sequence[int | None]
) -> dict[str, list[Any]]:
    """Columns of the samples' shard.

    Args:
        prepared: The campaign.
        unit: The unit.
        outcomes: Of its images, in order.
        targets: Classes aimed at, likewise.
    """
    columns = given(prepared, unit)
    return columns | {
        "target": list(targets),
        "status": [outcome.status.value for outcome in outcomes],
        "reason": [outcome.reason for outcome in outcomes],
        "label": [outcome.label for outcome in outcomes],
        "queries": [outcome.queries for outcome in outcomes],
        "distance": [outcome.distance for outcome in outcomes],
        "sample": [_raw(outcome.sample) for outcome in outcomes],
        "trace_queries": [[asked for asked, _ in outcome.trace] for outcome in outcomes],
        "trace_distance": [[length for _, length in outcome.trace] for outcome in outcomes],
        "budget_samples": [
            [_raw(outcome.checkpoints.get(at)) for at in budgets]
            for outcome, budgets in zip(outcomes, columns["budgets"], strict=True)
        ],
    }


def replays(of: Columns, answers: Sequence[Answer]) -> dict[str, list[Any]]:
    """Columns of the replays' shard.

    Args:
        of: The unit's samples.
        answers: The copies' answers.
    """
    return {
        **{key: [of[key][one.shown.image] for one in answers] for key in KEYS},
        "budget": [one.shown.budget for one in answers],
        "overshoot": [one.shown.overshoot for one in answers],
        "victim": [one.victim for one in answers],
        "label": [one.label for one in answers],
        "clean_label": [one.clean_label for one in answers],
        "l2": [one.shown.l2 for one in answers],
        "linf": [one.shown.linf for one in answers],
    }


def _raw(frame: NDArray[Any] | None) -> bytes | None:
    return None if frame is None else np.ascontiguousarray(frame).tobytes()
