"""What an outcome's trace says."""

from __future__ import annotations

from variegate.attack.outcome import Outcome


def distance_at(outcome: Outcome, queries: int) -> float:
    """Of the sample so far after so many queries; infinite before the first."""
    return next((length for asked, length in reversed(outcome.trace) if asked <= queries), float("inf"))
