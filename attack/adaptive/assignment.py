"""The cheapest one-to-one assignment (Kuhn 1955; the shortest-path form of Jonker and Volgenant 1987)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import MisuseError


def assigned(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """The column of each row, int64 (n,), such that the sum of costs (n, n) is least.

    Raises:
        MisuseError: The costs are not square and finite.
    """
    n = len(costs)
    if costs.shape != (n, n) or not np.isfinite(costs).all():
        raise MisuseError("an assignment needs a square of finite costs")
    # Column n is a place for the row that is being brought in.
    row_of = np.full(n + 1, -1)
    of_rows, of_columns = np.zeros(n), np.zeros(n + 1)
    for row in range(n):
        row_of[n], column = row, n
        least, before = np.full(n, np.inf), np.full(n, n)
        done = np.zeros(n + 1, np.bool_)
        while row_of[column] != -1:
            done[column] = True
            at = row_of[column]
            reduced = costs[at] - of_rows[at] - of_columns[:n]
            nearer = ~done[:n] & (reduced < least)
            least[nearer], before[nearer] = reduced[nearer], column
            following = int(np.where(done[:n], np.inf, least).argmin())
            shift = least[following]
            of_rows[row_of[done]] += shift
            of_columns[done] -= shift
            least[~done[:n]] -= shift
            column = following
        while column != n:
            row_of[column] = row_of[before[column]]
            column = int(before[column])
    out = np.empty(n, np.int64)
    out[row_of[:n]] = np.arange(n)
    return out
