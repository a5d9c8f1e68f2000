"""Tables: what is computed, as CSV for people and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from variegate.attack.report.replication import GROUP, Cell
from variegate.attack.report.results import Results
from variegate.attack.report.statistics import Rate
from variegate.keys.shown import printable

Value = str | int | float | None
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the start of a formula, or drops before one."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Of its files.
        caption: What it shows.
        columns: Names.
        rows: As many values each.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def csv(self) -> bytes:
        """RFC 4180, UTF-8. A text that a spreadsheet would run as a formula gets an apostrophe in front (OWASP).

        What is not printable is a question mark. Infinite distances are written `inf`, missing values are empty.
        """
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\r\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(value) for value in row] for row in self.rows)
        return out.getvalue().encode()

    def json(self) -> bytes:
        """{"caption", "columns", "rows"}; infinite distances are the text "inf", missing values null."""
        rows = [[str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in row] for row in self.rows]
        document = {"caption": self.caption, "columns": self.columns, "rows": rows}
        return (json.dumps(document, indent=None, allow_nan=False) + "\n").encode()


def _cell(value: Value) -> str | int | float:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    # First what a spreadsheet looks for: some of it is not printable.
    return printable(f"'{value}" if value.startswith(_FORMULA) else value)


def _rate(rate: Rate) -> tuple[Value, ...]:
    return (
        rate.hits, rate.trials, rate.images, rate.share, rate.wilson.low, rate.wilson.high, rate.clustered.low,
        rate.clustered.high,
    )  # fmt: skip


_RATE = ("hits", "trials", "images", "rate", "wilson_low", "wilson_high", "cluster_low", "cluster_high")


def _named(*prefixes: str) -> tuple[str, ...]:
    return tuple(f"{prefix}_{column}" for prefix in prefixes for column in _RATE)


def _cells(name: str, caption: str, keys: Sequence[str], cells: Iterable[Cell]) -> Table:
    rows = tuple((*cell.keys, *_rate(cell.raw), *_rate(cell.net), *_rate(cell.shown)) for cell in cells)
    return Table(name, caption, (*GROUP, *keys, *_named("raw", "net", "shown")), rows)


def tables(results: Results) -> list[Table]:
    """Every table of a report."""
    return [
        Table(
            "searches",
            "How searches went; quartiles count searches without a sample as infinitely far",
            (*GROUP, "searches", "images", "found", "distance_q1", "distance_median", "distance_q3",
             "queries_q1", "queries_median", "queries_q3", "queries_total"),
            tuple(
                (*s.group, s.searches, s.images, s.found, *s.distance, *s.queries, s.queries_total)
                for s in results.searches
            ),
        ),
        _cells(
            "replication_overshoot",
            "Replication by overshoot and budget (0: the end of the search)",
            ("budget", "overshoot"),
            results.overshoot,
        ),
        _cells(
            "replication_any_overshoot",
            "Pairs fooled at one overshoot or more, by budget (0: the end of the search)",
            ("budget",),
            results.tries,
        ),
        _cells(
            "replication_pairs",
            "Attacker by victim, by budget (0: the end of the search) and overshoot",
            ("budget", "overshoot", "attacker", "victim"),
            results.pairs,
        ),
        *(
            _cells(
                f"replication_{norm}",
                f"Replication of frames in bins of their {norm} distance, all overshoots, at the end of the search",
                (f"{norm}_from",),
                results.binned[norm],
            )
            for norm in ("l2", "linf")
        ),
        *(
            Table(
                f"success_within_{norm}",
                f"Net pairs whose victim is fooled by a frame within a {norm} distance, whatever overshoot reaches it",
                (*GROUP, norm, *_named("net")),
                tuple((*reached.keys, *_rate(reached.net)) for reached in results.within[norm]),
            )
            for norm in ("l2", "linf")
        ),
        Table(
            "effort",
            "Labels asked for by searches stopped at a budget (0: the end), and those with a sample by then",
            (*GROUP, "budget", "queries", "samples_replayed", "samples_that_fool_their_copy"),
            tuple((*s.group, s.budget, s.queries, s.samples, s.own) for s in results.budget_cuts),
        ),
        Table(
            "distance_queries",
            "Distance reached with so many queries; searches without a sample count as infinitely far",
            (*GROUP, "queries", "searches", "distance_q1", "distance_median", "distance_q3"),
            tuple((*p.group, p.queries, p.searches, *p.distance) for p in results.progress),
        ),
        Table(
            "ended",
            "How searches ended",
            (*GROUP, "status", "reason", "searches"),
            tuple((*e.group, e.status, e.reason, e.searches) for e in results.ended),
        ),
        Table(
            "clean_errors",
            "Wrong labels on clean images that samples were found for",
            ("fleet", "copy", *_RATE),
            tuple((e.fleet, e.copy, *_rate(e.errors)) for e in results.errs),
        ),
    ]  # fmt: skip
