"""Shows where a campaign stands: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from variegate.attack.campaign.runner import Standing
from variegate.cli.console import note, table

_TERMINAL_PERIOD_S, _LOG_PERIOD_S = 0.5, 5.0
_HEADER = ("fleet", "attack", "units", "failed", "images", "found", "queries", "median")


class LiveTable:
    """Told of every change; draws as often as makes sense. On stderr."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._shown = self._begun
        self._lines = 0
        self._first: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._erase()

    def show(self, standing: Standing) -> None:
        """Draws, when it is time."""
        now = time.monotonic()
        if self._first is None:
            self._first = sum(row.images for row in standing.values())
        if now - self._shown < (_TERMINAL_PERIOD_S if self._terminal else _LOG_PERIOD_S):
            return
        self._shown = now
        if not self._terminal:
            note(self._summary(standing))
            return
        rows = [
            (
                *where,
                f"{row.done}/{row.units}",
                row.failed,
                f"{row.images}/{row.total}",
                row.found,
                row.queries,
                f"{row.median:.3f}",
            )
            for where, row in standing.items()
        ]
        text = f"{table(rows, _HEADER)}\n{self._summary(standing)}"
        self._erase()
        print(text, file=sys.stderr, flush=True)
        self._lines = text.count("\n") + 1

    def _erase(self) -> None:
        if self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="", file=sys.stderr, flush=True)
            self._lines = 0

    def _summary(self, standing: Standing) -> str:
        rows = standing.values()
        done, units = sum(row.done for row in rows), sum(row.units for row in rows)
        images, total = sum(row.images for row in rows), sum(row.total for row in rows)
        queries = sum(row.queries for row in rows)
        passed = self._shown - self._begun
        new = images - (self._first or 0)
        left = f", about {_span(passed * (total - images) / new)} left" if new else ""
        return f"units {done} of {units}, images {images} of {total}, {queries / passed:.0f} queries/s{left}"


def _span(seconds: float) -> str:
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"  # noqa: PLR2004
