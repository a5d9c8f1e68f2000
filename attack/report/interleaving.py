"""An order in which no fleet crowds out the others: a control without protection has the highest rates of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


def interleaved(items: Iterable[_T], fleet: Callable[[_T], str], weight: Callable[[_T], float]) -> list[_T]:
    """The heaviest of each fleet, heaviest first, then their second, and so on.

    Args:
        items: Equal weights keep their order.
        fleet: Of an item.
        weight: Of an item.
    """
    turns: dict[str, int] = defaultdict(int)
    placed = []
    for item in sorted(items, key=weight, reverse=True):
        placed.append((turns[fleet(item)], item))
        turns[fleet(item)] += 1
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]
