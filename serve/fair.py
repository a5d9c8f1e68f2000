"""Chooses the next query: peers get equal shares of the engine, measured in frames. No I/O, no threads.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a query's start tag is the later of the queue's virtual
time and the finish tag of its peer's previous query; the lowest start tag goes first; finish = start + frames.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Generic, TypeVar

T = TypeVar("T")
_FORGET = 1024


class FairQueue(Generic[T]):
    """Waiting queries of many peers.

    Args:
        total: Most that may wait.
        each: Most that may wait of one peer.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total, self._each = total, each
        self._heap: list[tuple[int, int, str, T]] = []
        self._waiting: Counter[str] = Counter()
        self._finish: dict[str, int] = {}
        self._now = 0
        self._order = 0

    def __len__(self) -> int:
        return len(self._heap)

    def waiting(self, peer: str) -> int:
        """Items of one peer."""
        return self._waiting.get(peer, 0)

    def has_room(self, peer: str, ahead: int = 0, ahead_of_peer: int = 0) -> bool:
        """Whether an item of a peer would find room.

        Args:
            peer: Its peer.
            ahead: Items of all peers that are on their way here and to be counted.
            ahead_of_peer: Those of this peer among them.
        """
        return len(self._heap) + ahead < self._total and self.waiting(peer) + ahead_of_peer < self._each

    def push(self, peer: str, cost: int, item: T) -> bool:
        """Queues an item; False when there is no room for it.

        Args:
            peer: Its peer.
            cost: Frames, at least 1.
            item: The item that `pop` returns.
        """
        if not self.has_room(peer):
            return False
        start = max(self._now, self._finish.get(peer, 0))
        if len(self._finish) >= _FORGET:
            self._finish = {name: tag for name, tag in self._finish.items() if tag > self._now}
        self._finish[peer] = start + cost
        self._order += 1
        heapq.heappush(self._heap, (start, self._order, peer, item))
        self._waiting[peer] += 1
        return True

    def pop(self) -> T | None:
        """The next item, or None."""
        if not self._heap:
            return None
        self._now, _, peer, item = heapq.heappop(self._heap)
        self._left(peer)
        return item

    def remove(self, item: T) -> bool:
        """Takes an item out; False when it is not waiting any more."""
        for place, entry in enumerate(self._heap):
            if entry[3] is item:
                del self._heap[place]
                heapq.heapify(self._heap)
                self._left(entry[2])
                return True
        return False

    def _left(self, peer: str) -> None:
        self._waiting[peer] -= 1
        if not self._waiting[peer]:
            del self._waiting[peer]
