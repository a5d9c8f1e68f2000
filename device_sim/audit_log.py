"""The audit log of a device that is on: appends, survives power cuts and damage, exports.

An entry is durable on the disk first, then the chip counts it: it burns the entry's number and hash, as one value.

    audit-head = number (8, big-endian) || SHA-256 of the entry's body; no value before the first

A power cut between the two leaves the log one entry ahead. The next start adopts this entry: it must follow the one
that the chip counted, because the device signs no other. A log that is behind the chip, or ends in an entry other than
the counted one, has lost entries. The device then continues with a new segment, whose head has the number of lost
entries, and an entry that records the loss.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Protocol

from variegate.device_sim.at_rest import AtRest
from variegate.device_sim.audit import (
    KEPT,
    LOST,
    MAX_LINE,
    MAX_RECORD,
    SEGMENT_BYTES,
    SEGMENTS,
    START,
    AuditEntry,
    AuditKey,
    End,
    Head,
    Segment,
    line,
    parse,
    to_export,
)
from variegate.device_sim.repeats import Repeats
from variegate.keys.errors import DeviceError
from variegate.keys.primitives import HASH_BYTES, sha256

HEAD = "audit-head"
"""The chip's record of the entry that it counted last."""
_NUMBER_BYTES = 8


class Anchor(Protocol):
    """The part of the chip that the log needs."""

    def load(self, name: str) -> bytes | None:
        """A stored value; None where there is none."""
        ...

    def burn(self, name: str, value: bytes) -> None:
        """Replaces a value whole, durable before it returns."""
        ...


@dataclass(frozen=True)
class _Tip:
    """Where the log ends: its newest head (None: there is none), its last entry, and where the next record goes."""

    head: Head | None
    last: int
    link: bytes
    end: int


class AuditLog:
    """The log on one disk, counted by one chip. Safe among threads."""

    def __init__(self, disk: AtRest, chip: Anchor, key: AuditKey) -> None:
        self._disk = disk
        self._chip = chip
        self._key = key
        self._repeats = Repeats()
        self._guard = threading.RLock()
        self._tip: _Tip | None = None  # None: to be read from the disk

    def counted(self) -> int:
        """Number of the last entry that the chip counted, 0 before the first.

        Raises:
            DeviceError: The chip failed or is damaged.
        """
        with self._guard:
            return self._counted()[0]

    def write(self, at: float, event: str, detail: str, *, boot: int) -> None:
        """Appends an entry, durable before this returns; repeats of events that others cause are only counted.

        Args:
            at: Unix time in seconds.
            event: One word.
            detail: The rest, without secrets; unprintable characters are escaped, long text is cut.
            boot: Boots of the device so far.

        Raises:
            DeviceError: The disk or the chip failed.
        """
        with self._guard:
            for owed in self._repeats.due():
                self._append(at, *owed, boot=boot)
            if self._repeats.admits(event, detail):
                try:
                    self._append(at, event, detail, boot=boot)
                except BaseException:
                    self._repeats.forget(event, detail)  # the next like it is the first
                    raise

    def flush(self, at: float, *, boot: int) -> None:
        """Writes the events that were only counted so far.

        Raises:
            DeviceError: The disk or the chip failed.
        """
        with self._guard:
            for owed in self._repeats.due(all_of_it=True):
                self._append(at, *owed, boot=boot)

    def lines(self, at: float) -> list[str]:
        """All entries kept, oldest first, for people; nothing is verified. Events only counted so far come last.

        Args:
            at: Unix time in seconds, for the latter.

        Raises:
            DeviceError: The disk failed.
        """
        with self._guard:
            segments = [s for s in (parse(data, None) for data in self._segments()) if s is not None]
            segments.sort(key=lambda segment: segment.head.number)
            written = [entry.line() for segment in segments for entry in segment.entries]
            return written + [line(at, *owed) for owed in self._repeats.owed()]

    def export(self, at: float, *, boot: int) -> bytes:
        """The log with its end, signed now, for `audit_report.verify`.

        Raises:
            DeviceError: The disk or the chip failed.
        """
        with self._guard:
            self.flush(at, boot=boot)
            tip = self._ready(at, boot)
            end = End(sequence=tip.last, boot=boot, time_ms=_ms(at), previous=tip.link)
            # As far as each is whole: entries after damage prove nothing, and the verifier names the missing ones.
            whole = [data[: segment.end] for data in self._segments() if (segment := parse(data, None)) is not None]
            return to_export(self._key.certificate, self._key.sign(end.to_bytes()), whole)

    def _append(self, at: float, event: str, detail: str, *, boot: int) -> None:
        # Cut so that a line is at most `MAX_LINE` long even with escapes.
        shown = line(at, event, detail)
        detail = detail if len(shown) < MAX_LINE else _cut(detail, len(line(at, event, "")))
        tip = self._ready(at, boot)
        entry = AuditEntry(
            sequence=tip.last + 1, boot=boot, time_ms=_ms(at), event=event, detail=detail, previous=tip.link
        )
        self._write(tip, entry)

    def _write(self, tip: _Tip, entry: AuditEntry) -> None:
        record = self._key.sign(entry.to_bytes())
        if tip.head is not None and tip.end + len(record) <= SEGMENT_BYTES:
            self._store(tip.head, tip.end, record, entry)
        else:
            self._begin(tip, entry, lost=0)

    def _begin(self, tip: _Tip, entry: AuditEntry, *, lost: int) -> None:
        """Starts a segment with an entry, `lost` entries after the last one."""
        before = tip.head or Head(number=0, firsts=(), previous=START, lost=0)
        head = Head(
            number=before.number + 1,
            firsts=(*before.firsts, entry.sequence)[-KEPT:],
            previous=tip.link,
            lost=before.lost + lost,
        )
        body = head.to_bytes()
        first = replace(entry, previous=sha256(body))
        name, disk = _name(head.number), self._disk
        new = not disk.exists(name)
        self._tip = None
        disk.create(name)
        disk.truncate(name, SEGMENT_BYTES)  # of one length from now on: no later write changes more than sectors
        if new:
            disk.fsync_dir()
        self._store(head, 0, self._key.sign(body) + self._key.sign(first.to_bytes()), first)

    def _store(self, head: Head, at: int, records: bytes, last: AuditEntry) -> None:
        name, link = _name(head.number), sha256(last.to_bytes())
        self._tip = None  # unless all of this succeeds, the disk is asked
        self._disk.write(name, at, records)
        self._disk.fsync(name)
        self._count(last.sequence, link)
        self._tip = _Tip(head, last.sequence, link, at + len(records))

    def _count(self, number: int, link: bytes) -> None:
        self._chip.burn(HEAD, number.to_bytes(_NUMBER_BYTES, "big") + link)

    def _counted(self) -> tuple[int, bytes]:
        """Number and hash of the last entry that the chip counted."""
        burnt = self._chip.load(HEAD)
        if burnt is None:
            return 0, START
        if len(burnt) != _NUMBER_BYTES + HASH_BYTES:
            raise DeviceError("the chip's head of the audit log is damaged", hint="replace the chip")
        return int.from_bytes(burnt[:_NUMBER_BYTES], "big"), burnt[_NUMBER_BYTES:]

    def _ready(self, at: float, boot: int) -> _Tip:
        """Where to continue; settles an entry left by a power cut, and records lost entries."""
        if self._tip is None:
            segment = self._found()
            tip = _Tip(segment.head, segment.last, segment.link, segment.end) if segment else _Tip(None, 0, START, 0)
            if self._settled(segment):
                self._tip = tip
            else:
                counted, _ = self._counted()
                missing = max(1, counted - tip.last)
                detail = f"entries {tip.last + 1} to {counted}"
                if tip.last >= counted:
                    detail = f"entry {tip.last} is not the one that the chip counted"
                entry = AuditEntry(
                    sequence=max(tip.last, counted) + 1,
                    boot=boot,
                    time_ms=_ms(at),
                    event=LOST,
                    detail=detail,
                    previous=tip.link,
                )
                self._begin(tip, entry, lost=missing)
        if self._tip is None:
            raise DeviceError("the device's audit log cannot be written", hint="open the device again")
        return self._tip

    def _settled(self, segment: Segment | None) -> bool:
        """Whether the newest segment ends in the entry that the chip counted; one entry ahead is counted here.

        A segment begun after a loss follows the last entry left, not the one that the chip counted. To continue with it
        hides nothing: its head records the loss.
        """
        counted, link = self._counted()
        if segment is None:
            return counted == 0
        entries = segment.entries
        begun_well = segment.head.previous == link or segment.head.lost > 0
        if segment.last == counted:
            return segment.link == link if entries else begun_well
        if segment.last != counted + 1 or not entries:
            return False
        follows = entries[-1].previous == link if len(entries) > 1 else begun_well
        if follows:  # the power went before the chip counted it
            self._count(segment.last, segment.link)
        return follows

    def _found(self) -> Segment | None:
        """The newest segment that has a signed head."""
        starts = [parse(data, self._key.public) for data in self._segments(MAX_RECORD)]
        heads = [s.head for place, s in enumerate(starts) if s is not None and s.head.number % SEGMENTS == place]
        if not heads:
            return None
        newest = max(heads, key=lambda head: head.number)
        segment = parse(self._disk.read(_name(newest.number), 0, SEGMENT_BYTES), self._key.public)
        if segment is None:
            raise DeviceError(
                "the device's disk gives different data when read twice", hint="give the device a blank disk"
            )
        return segment

    def _segments(self, most: int = SEGMENT_BYTES) -> list[bytes]:
        """Bytes of each segment's file, empty for none; at most as much as the log writes."""
        disk = self._disk
        names = [_name(place) for place in range(SEGMENTS)]
        return [disk.read(name, 0, most) if disk.exists(name) else b"" for name in names]


def _name(number: int) -> str:
    return f"audit.{number % SEGMENTS}"


def _ms(at: float) -> int:
    return max(0, round(at * 1000))


def _cut(detail: str, used: int) -> str:
    """The longest start of a text that is no longer than a line leaves when escaped."""
    room, words = MAX_LINE - used, []
    for character in detail:
        room -= len(character.encode("unicode_escape"))
        if room < 0:
            break
        words.append(character)
    return "".join(words)
