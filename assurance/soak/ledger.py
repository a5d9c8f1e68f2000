"""The queries and answers of the clients of `assurance.soak`, and the times when they may ask."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

BATCH = 64
"""Most frames in one query."""


@dataclass(frozen=True)
class Query:
    """Frames and the labels that the reference gave them.

    Attributes:
        frames: uint8 (N, *shape).
        labels: int64 (N,).
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Refused:
    """An answer without labels.

    Attributes:
        status: Of HTTP, or of the label socket.
        charged: Whether the answer says that the query may have been charged.
        again: Whether the answer says that asking again may help.
    """

    status: int
    charged: bool
    again: bool


Answer = NDArray[np.int64] | Refused


class LostError(Exception):
    """A connection that was let in ended without the answer that was due, or brought what was not asked for."""


class TurnedAwayError(Exception):
    """A connection was not let in; nothing was asked on it."""


class Pool:
    """Frames with their reference labels.

    Args:
        frames: uint8 (N, *shape).
        labels: int64 (N,).
    """

    def __init__(self, frames: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._frames, self._labels = frames, labels

    def draw(self, rng: np.random.Generator, most: int = BATCH) -> Query:
        """A query of 1 to `most` frames, small ones as often as large ones."""
        count = min(most, int(2 ** rng.uniform(0, np.log2(most + 1))))
        chosen = rng.integers(0, len(self._frames), count)
        return Query(self._frames[chosen], self._labels[chosen])


@dataclass
class Ledger:
    """Counts the clients' observations. Thread-safe.

    Attributes:
        requests: Queries asked, by kind of client.
        answered: Labels in answers that were read.
        wrong: Labels that differ from the reference's, are too many or too few, or answer another query.
        uncertain: Frames that may have been charged and brought no label: lost, or told so.
        refused: Answers without labels to queries in order, by kind of client and status.
        turned_away: Connections not let in, of clients whose queries are in order.
        attacks: Attacks made, by name.
        told: The answers to attacks, by name and status; 0 is an end without an answer.
        unexpected: Unexpected events, in words.
    """

    requests: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    wrong: int = 0
    uncertain: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    turned_away: int = 0
    attacks: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def judge(self, kind: str, query: Query, answer: Answer) -> None:
        """Compares one answer with the reference."""
        with self.lock:
            self.requests[kind] += 1
            if isinstance(answer, Refused):
                self.refused[f"{kind} {answer.status}"] += 1
                self.uncertain += len(query.labels) if answer.charged else 0
                if not answer.again:
                    self.unexpected[f"{kind} was refused with {answer.status}"] += 1
                return
            self.answered += len(answer)
            if len(answer) != len(query.labels):
                self.wrong += max(len(answer), len(query.labels))
            else:
                self.wrong += int(np.count_nonzero(answer != query.labels))

    def lost(self, kind: str, queries: Sequence[Query], error: Exception) -> None:
        """Queries on an open connection that got no answer, nor an error."""
        with self.lock:
            self.requests[kind] += len(queries)
            self.uncertain += sum(len(query.labels) for query in queries)
            self.unexpected[f"{kind} lost its connection: {type(error).__name__}: {error}"[:200]] += 1

    def abandoned(self, query: Query) -> None:
        """A query in order whose client does not wait for the answer."""
        with self.lock:
            self.uncertain += len(query.labels)

    def attacked(self, name: str, statuses: Sequence[int], allowed: frozenset[int]) -> None:
        """The answers to one attack."""
        with self.lock:
            self.attacks[name] += 1
            for status in statuses:
                self.told[f"{name} {status}"] += 1
                if status not in allowed:
                    self.unexpected[f"attack {name} was answered {status}"] += 1

    def note(self, what: str) -> None:
        """Something that should not have been."""
        with self.lock:
            self.unexpected[what] += 1

    def away(self) -> None:
        """A connection that was not let in."""
        with self.lock:
            self.turned_away += 1

    def state(self) -> tuple[int, int]:
        """`answered` and `uncertain` at this moment."""
        with self.lock:
            return self.answered, self.uncertain


class Gate:
    """Where clients wait between two connections. Enter it as a context manager; it raises `EOFError` at the end.

    Attributes:
        open: Whether clients continue.
        ended: Whether they are to end.
        leaving: Whether clients may leave queries unanswered.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self.open = self.ended = False
        self.leaving = True

    def start(self, *, leaving: bool = True) -> None:
        """Lets clients through."""
        with self._condition:
            self.leaving, self.open = leaving, True
            self._condition.notify_all()

    def hold(self, wait_s: float) -> None:
        """Holds clients, and waits until each has closed its connection.

        Raises:
            TimeoutError: One does not.
        """
        with self._condition:
            self.open = False
            if not self._condition.wait_for(lambda: self._inside == 0, wait_s):
                raise TimeoutError("a client does not end")

    def end(self) -> None:
        """Ends clients."""
        with self._condition:
            self.open, self.ended = False, True
            self._condition.notify_all()

    def __enter__(self) -> Self:
        with self._condition:
            self._condition.wait_for(lambda: self.open or self.ended)
            if self.ended:
                raise EOFError
            self._inside += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()
