"""Metrics for operators: counts, times and free space, but no score, no input and no label.

The text format is written here: it is one page with six counters, and a client library would add a package to the
process. `tests/test_serve_metrics.py` reads it back with the official one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PREFIX = "variegate"


class Metrics:
    """Counters of one server. For the thread of its event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By kind of request ("infer", "health", "metadata", "metrics", "other", "socket") and status."""
        self.refusals: Counter[str] = Counter()
        """By reason: names of this package, no text of a client."""
        self.connections_refused: Counter[str] = Counter()
        """By reason: "full", "peer" or "handshake"."""
        self.labels = 0
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._seconds = 0.0
        self._gauges: dict[str, tuple[str, Callable[[], float | None]]] = {}

    def gauge(self, name: str, text: str, read: Callable[[], float | None]) -> None:
        """Adds a value that is read when asked for; None leaves it out."""
        self._gauges[name] = (text, read)

    def answered(self, frames: int, seconds: float) -> None:
        """Counts an answered query: from its arrival to its labels, waiting included."""
        self.labels += frames
        self._seconds += seconds
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        lines: list[str] = []

        def family(name: str, kind: str, text: str) -> str:
            full = f"{_PREFIX}_{name}"
            lines.extend([f"# HELP {full} {text}", f"# TYPE {full} {kind}"])
            return full

        name = family("requests_total", "counter", "Requests by kind and status.")
        lines.extend(
            f'{name}{{kind="{kind}",status="{status}"}} {count}'
            for (kind, status), count in sorted(self.requests.items())
        )
        name = family("refusals_total", "counter", "Queries that got no label, by reason.")
        lines.extend(f'{name}{{reason="{reason}"}} {count}' for reason, count in sorted(self.refusals.items()))
        name = family("connections_refused_total", "counter", "Connections refused, by reason.")
        lines.extend(
            f'{name}{{reason="{reason}"}} {count}' for reason, count in sorted(self.connections_refused.items())
        )
        name = family("labels_total", "counter", "Labels given to clients.")
        lines.append(f"{name} {self.labels}")
        name = family("query_seconds", "histogram", "Time from a query's arrival to its labels.")
        below = 0
        for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], self._buckets, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        lines.extend([f"{name}_sum {self._seconds}", f"{name}_count {below}"])
        for short, (text, read) in self._gauges.items():
            value = read()
            if value is not None:
                lines.append(f"{family(short, 'gauge', text)} {value}")
        return ("\n".join(lines) + "\n").encode("ascii")
