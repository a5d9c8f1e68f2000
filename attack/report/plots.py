"""The plots of a report. One figure for each attack and profile, one line for each fleet, the same look throughout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from variegate.attack.report import svg
from variegate.attack.report.replication import Cell
from variegate.attack.report.results import Results
from variegate.attack.report.statistics import Rate

MARKERS = "osD^vPX*"
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (2, 2), (6, 2, 2, 2), (8, 3, 2, 3, 2, 3), (1, 2), (4, 1), (9, 2))
_NARROW, _THOUSAND = 150, 1000
_T = TypeVar("_T")
_Key = tuple[str, str, str]
"""attack, profile, norm."""


@dataclass
class Plots:
    """Draws figures and numbers them.

    Attributes:
        results: What is drawn.
        drawn: Figures so far.
    """

    results: Results
    drawn: int = field(default=0)

    def look(self, fleet: str) -> tuple[int, str, tuple[float, ...]]:
        """Number of the series' colour, marker and dashes of a fleet, the same in every figure."""
        at = self.results.fleets.index(fleet) if fleet in self.results.fleets else 0
        return at % len(svg.SERIES), MARKERS[at % len(MARKERS)], DASHES[(at + at // len(DASHES)) % len(DASHES)]

    def overshoot(self) -> list[str]:
        """Net replication against overshoot, with raw as thin lines."""
        ends = [cell for cell in self.results.overshoot if cell.keys[4] == 0]
        return self._curves(
            ends,
            lambda cell: (float(cell.keys[5]), cell.net),
            x="overshoot s",
            y="replication, net",
            title="Replication against overshoot",
            thin=lambda cell: (float(cell.keys[5]), cell.raw),
        )

    def distance(self, norm: str) -> list[str]:
        """Net replication of frames by the bin of their distance."""
        return self._curves(
            self.results.binned[norm],
            lambda cell: (max(float(cell.keys[4]), 1e-4), cell.net),
            x=f"{_NORMS[norm]} of the frame shown (start of bin)",
            y="replication, net",
            title=f"Replication against {_NORMS[norm]}",
            log=True,
            bars=True,
        )

    def within(self, norm: str) -> list[str]:
        """Share of pairs fooled within a distance."""
        cells = [Cell(reached.keys, reached.net, reached.net, reached.net) for reached in self.results.within[norm]]
        return self._curves(
            cells,
            lambda cell: (float(cell.keys[4]), cell.net),
            x=f"{_NORMS[norm]} of the frame shown, at most",
            y="pairs fooled, net",
            title=f"Success within {_NORMS[norm]}",
            log=True,
            markers=False,
        )

    def budget(self) -> list[str]:
        """Net replication of the sample as found and at the worst overshoot, against the query budget."""
        ends = {search.group: search.queries[1] or 0.0 for search in self.results.searches}
        cells: list[Cell] = []
        for group in ends:
            first, worst = self.results.as_found(group), self.results.worst(group)
            if first is None or worst is None:
                continue
            # Both keep their line over all budgets, wherever the worst lies.
            overshoots = {first.keys[5], worst.keys[5]}
            cells += [cell for cell in self.results.overshoot if cell.keys[:4] == group and cell.keys[5] in overshoots]

        def place(cell: Cell) -> tuple[float, Rate]:
            group = (str(cell.keys[0]), str(cell.keys[1]), str(cell.keys[2]), str(cell.keys[3]))
            return float(cell.keys[4]) or max(1.0, ends[group]), cell.net

        return self._curves(
            cells,
            place,
            x="queries for each image",
            y="replication, net",
            title="Replication against queries",
            log=True,
            split=5,
        )

    def effort(self) -> list[str]:
        """Distance against queries: medians with quartiles."""
        out = []
        for key, of in _by_attack(self.results.progress, lambda p: p.group).items():
            with matplotlib.rc_context(svg.style()):
                drawing = svg.figure()
                axes = _axes(drawing, _name(key), "queries for each image", f"{_NORMS.get(key[2], svg.shown(key[2]))}")
                _log(axes, "x", [p.queries for p in of])
                _log(axes, "y", [d for p in of for d in p.distance if d is not None and d > 0 and math.isfinite(d)])
                for fleet, points in _by_fleet(of, lambda p: p.group[0]).items():
                    colour, _, dashes = self.look(fleet)
                    low, middle, high = (
                        np.array([np.inf if (d := p.distance[i]) is None else d for p in points]) for i in range(3)
                    )
                    there = np.isfinite(middle) & (middle > 0)
                    if not there.any():
                        continue
                    x = np.array([p.queries for p in points], np.float64)[there]
                    top = np.where(np.isfinite(high[there]), high[there], middle[there].max() * 10)
                    bottom = np.maximum(low[there], middle[there].min() / 10)
                    axes.fill_between(x, bottom, top, color=svg.SERIES[colour], alpha=0.15, linewidth=0)
                    axes.plot(x, middle[there], color=svg.SERIES[colour], dashes=dashes)
                out.append(self._done(drawing, f"Distance against queries, {_name(key)}"))
        return out

    def _curves(
        self,
        cells: Iterable[Cell],
        place: Callable[[Cell], tuple[float, Rate]],
        *,
        x: str,
        y: str,
        title: str,
        thin: Callable[[Cell], tuple[float, Rate]] | None = None,
        log: bool = False,
        markers: bool = True,
        bars: bool = False,
        split: int | None = None,
    ) -> list[str]:
        """One figure for each attack. With `split`, each value of that key is a line; all but the first are dotted."""
        out = []
        for key, of in _by_attack(cells, _group).items():
            with matplotlib.rc_context(svg.style()):
                drawing = svg.figure()
                axes = _axes(drawing, _name(key), x, y)
                _percent(axes)
                if log:
                    _log(axes, "x", [place(cell)[0] for cell in of])
                places = sorted({place(cell)[0] for cell in of})
                ratio = min((high / low for low, high in pairwise(places)), default=2.0) if bars else 0.0
                for fleet, points in _by_fleet(of, lambda cell: str(cell.keys[0])).items():
                    lines = [points] if split is None else _split(points, split)
                    for number, line in enumerate(lines):
                        ordered = sorted(map(place, line), key=lambda p: p[0])
                        self._line(axes, fleet, ordered, markers=markers, dotted=number > 0, bars=ratio)
                    if thin is not None:
                        faint = [(at, r.share) for at, r in map(thin, points) if r.share is not None]
                        colour = svg.SERIES[self.look(fleet)[0]]
                        axes.plot(*zip(*faint, strict=True), color=colour, linewidth=0.7) if faint else None
                out.append(self._done(drawing, f"{title}, {_name(key)}"))
        return out

    def _line(
        self,
        axes: Axes,
        fleet: str,
        points: Sequence[tuple[float, Rate]],
        *,
        markers: bool,
        dotted: bool = False,
        bars: float = 0.0,
    ) -> None:
        """One fleet's line with its intervals, as a band or, where neighbours rest on different frames, as bars.

        `bars` is the ratio of neighbouring places; 0 draws a band.
        """
        colour, marker, dashes = self.look(fleet)
        points = [point for point in points if point[1].trials]
        if not points:
            return
        at = np.array([x for x, _ in points])
        shares = np.array([rate.share or 0.0 for _, rate in points])
        low = np.array([min(rate.wilson.low, rate.clustered.low) for _, rate in points])
        high = np.array([max(rate.wilson.high, rate.clustered.high) for _, rate in points])
        if bars:
            # Side by side, or the bars of fleets would hide one another.
            fleets = self.results.fleets
            at *= (bars ** (0.8 / len(fleets))) ** (fleets.index(fleet) - (len(fleets) - 1) / 2)
            axes.vlines(at, low, high, color=svg.SERIES[colour], linewidth=1.1)
        elif not dotted:
            axes.fill_between(at, low, high, color=svg.SERIES[colour], alpha=0.15, linewidth=0)
        axes.plot(
            at,
            shares,
            color=svg.SERIES[colour],
            marker=marker if markers else "",
            markerfacecolor="none" if dotted else svg.SERIES[colour],
            linewidth=0.9 if bars else 1.8,
            dashes=(1, 2) if dotted else dashes,
            clip_on=False,
        )

    def _done(self, drawing: Figure, title: str) -> str:
        self.drawn += 1
        return svg.render(drawing, self.drawn, title)


_NORMS = {"l2": "L2", "linf": "Linf"}


def _group(cell: Cell) -> tuple[str, str, str, str]:
    return str(cell.keys[0]), str(cell.keys[1]), str(cell.keys[2]), str(cell.keys[3])


def _by_attack(items: Iterable[_T], group: Callable[[_T], tuple[str, str, str, str]]) -> dict[_Key, list[_T]]:
    out: dict[_Key, list[_T]] = {}
    for item in items:
        out.setdefault(group(item)[1:], []).append(item)
    return dict(sorted(out.items()))


def _by_fleet(items: Iterable[_T], fleet: Callable[[_T], str]) -> Mapping[str, list[_T]]:
    out: dict[str, list[_T]] = {}
    for item in items:
        out.setdefault(fleet(item), []).append(item)
    return out


def _split(points: Iterable[Cell], key: int) -> list[list[Cell]]:
    out: dict[float, list[Cell]] = {}
    for cell in points:
        out.setdefault(float(cell.keys[key]), []).append(cell)
    return [out[value] for value in sorted(out)]


def _name(key: _Key) -> str:
    return svg.shown(f"{key[0]} · {key[1]} · {_NORMS.get(key[2], key[2])}")


def _axes(drawing: Figure, title: str, x: str, y: str) -> Axes:
    axes = drawing.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return axes


def _log(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers: 1, 2, 5 over a few decades, else the decades."""
    shown = [value for value in values if value > 0] or [1.0]
    narrow = max(shown) / min(shown) < _NARROW
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= _THOUSAND else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _percent(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
