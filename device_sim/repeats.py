"""Keeps hostile clients from wearing out the disk through the log: repeats are counted, floods are summed up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0
"""For this long after an entry, others like it are only counted."""
BURST = 64
EVERY_S = 30.0
"""Entries of a bounded kind: so many at once, then one in so many seconds."""
BOUNDED = frozenset({"refused", "budget"})
"""Events that others can cause at will. Other events are limited by their causes."""
_OTHERS = "others"

Text = tuple[str, str]
"""Event and detail."""


@dataclass
class _Kind:
    since: float
    count: int = 0
    example: str = ""


class Repeats:
    """Decides which entries are written, and counts the others. The counts are lost when the power goes.

    Args:
        clock: Seconds that only rise; not the device's clock, which may stand still.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[Text, _Kind] = {}
        self._tokens, self._filled_at = float(BURST), clock()

    def admits(self, event: str, detail: str) -> bool:
        """Whether to write this; when not, it is counted."""
        if event not in BOUNDED:
            return True
        now = self._clock()
        kind = self._kinds.get((event, detail))
        if kind is not None:
            kind.count += 1
            return False
        self._tokens = min(BURST, self._tokens + (now - self._filled_at) / EVERY_S)
        self._filled_at = now
        if self._tokens < 1:
            lump = self._kinds.setdefault((event, _OTHERS), _Kind(now))
            lump.count += 1
            lump.example = detail
            return False
        self._tokens -= 1
        self._kinds[event, detail] = _Kind(now)
        return True

    def forget(self, event: str, detail: str) -> None:
        """Takes back that something was admitted, when it could not be written."""
        self._kinds.pop((event, detail), None)

    def owed(self) -> list[Text]:
        """The counted events that are not written yet."""
        return [_text(event, detail, kind) for (event, detail), kind in self._kinds.items() if kind.count]

    def due(self, *, all_of_it: bool = False) -> list[Text]:
        """The entries to write now; their counts are cleared."""
        until = self._clock() - WINDOW_S
        over = {key: kind for key, kind in self._kinds.items() if all_of_it or kind.since <= until}
        for key in over:
            del self._kinds[key]
        return [_text(event, detail, kind) for (event, detail), kind in over.items() if kind.count]


def _text(event: str, detail: str, kind: _Kind) -> Text:
    if detail == _OTHERS:
        return event, f"{kind.count} more, too many to write each; the last: {kind.example}"
    return event, f"{detail} (repeated {kind.count} times)"
