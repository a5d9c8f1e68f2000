"""Shows the progress of a campaign: a live table on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import os
import shutil
import sys
import time
from types import TracebackType
from typing import Self

from variegate.attack.campaign.runner import Standing
from variegate.cli.console import note, table

_TERMINAL_PERIOD_S = 0.5
_LOG_PERIOD_S, _LONGEST_LOG_PERIOD_S = 5.0, 600.0
_LOG_SHARE = 0.1
"""A log's next line comes after this share of the time so far: a run of a week needs no line every 5 s."""
_HEADER = ("fleet", "attack", "units", "failed", "images", "found", "queries", "median")


class LiveTable:
    """Called at every change; draws at sensible intervals. On stderr."""

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
        if now - self._shown < self._period(now):
            return
        self._shown = now
        if not self._terminal:
            note(self._summary(standing))
            return
        lines = _fitting(standing, self._summary(standing), _terminal_size())
        self._erase()
        print("\n".join(lines), file=sys.stderr, flush=True)
        self._lines = len(lines)

    def _period(self, now: float) -> float:
        if self._terminal:
            return _TERMINAL_PERIOD_S
        return min(max(_LOG_PERIOD_S, (now - self._begun) * _LOG_SHARE), _LONGEST_LOG_PERIOD_S)

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


def _fitting(standing: Standing, summary: str, size: os.terminal_size) -> list[str]:
    """Lines of which each fills one row of the screen, and all of them fewer rows than it has: else none is erased."""
    room = size.lines - 3  # the header, the summary, and the row where the cursor waits
    shown = list(standing.items())
    if len(shown) > room:
        # Units under way matter more.
        shown.sort(key=lambda item: item[1].done + item[1].failed >= item[1].units)
        shown = shown[: max(0, room - 1)]
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
        for where, row in shown
    ]
    lines = table(rows, _HEADER).splitlines() if rows else []
    if len(shown) < len(standing) and room > 0:
        lines.append(f"and {len(standing) - len(shown)} more")
    # A line as wide as the screen ends in the next row on some terminals.
    return [line[: max(1, size.columns - 1)] for line in (*lines, summary)]


def _terminal_size() -> os.terminal_size:
    """Of the terminal behind stderr; stdout may go elsewhere."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return shutil.get_terminal_size()
    return size if size.columns and size.lines else shutil.get_terminal_size()


def _span(seconds: float) -> str:
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"  # noqa: PLR2004
