"""Verifies an exported audit log with the device's public identity alone."""

from __future__ import annotations

from dataclasses import dataclass

from variegate.device_sim.audit import SEGMENTS, START, AuditEntry, Segment, certified, parse, parse_end, parse_export
from variegate.keys.identity import DevicePublic


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The result of a log's verification.

    Attributes:
        ueid: Of the device, 33 bytes.
        count: Entries that the device's chip counted when the export was made.
        boot: Boots of the device by then.
        time_ms: When the export was made, Unix milliseconds by the device's clock.
        entries: Those that verify, oldest first.
        dropped: Entries 1 to this were dropped to make room.
        lost: Entries that the device itself has found missing, ever.
        faults: Faults with their places; empty when the log is whole.
    """

    ueid: bytes
    count: int
    boot: int
    time_ms: int
    entries: tuple[AuditEntry, ...]
    dropped: int
    lost: int
    faults: tuple[str, ...]


def verify(export: bytes, device: DevicePublic) -> AuditReport:
    """Checks an export: the key's certificate, every signature, the chain, the count.

    It shows the device's log up to the export's time. An old export stays valid: compare `time_ms` and `boot` with the
    expected values.

    Args:
        export: Hostile bytes.
        device: The device that the log should be of; enrolment establishes that this is that device.

    Returns:
        The findings. Only a log without faults is whole.

    Raises:
        RefusedError: `TOO_LARGE`, `MALFORMED`, `WRONG_DEVICE` or `SIGNATURE`, when it is not an export of this device
            at all.
    """
    certificate, last_record, parts = parse_export(export)
    key = certified(certificate, device.ueid, device.signing_public)
    end = parse_end(last_record, key)
    faults: list[str] = []
    parsed_parts = [parse(part, key) for part in parts]
    if None in parsed_parts:
        faults.append("a segment does not begin with a signed head")
    segments = sorted((s for s in parsed_parts if s is not None), key=lambda s: s.head.number)
    if segments:  # older segments were dropped; such a file is there by chance or was put there
        oldest = segments[-1].head.number - SEGMENTS
        segments = [segment for segment in segments if segment.head.number > oldest]
    last, link = _walk(segments, faults)
    if last != end.sequence:
        faults.append(_missing(last + 1, end.sequence) if last < end.sequence else f"entry {last} is not counted")
    elif link != end.previous:
        faults.append(f"entry {last} is not the one that the chip counted")
    lost = segments[-1].head.lost if segments else 0
    if lost:
        faults.append(f"the device itself has found {lost} entries missing")
    return AuditReport(
        ueid=device.ueid,
        count=end.sequence,
        boot=end.boot,
        time_ms=end.time_ms,
        entries=tuple(entry for segment in segments for entry in segment.entries),
        dropped=_promised(segments[-1]) - 1 if segments else 0,
        lost=lost,
        faults=tuple(dict.fromkeys(faults)),
    )


def _walk(segments: list[Segment], faults: list[str]) -> tuple[int, bytes]:
    """Follows the chain through; returns the last entry's sequence and the last link."""
    if not segments:
        return 0, START
    promised = _promised(segments[-1])
    last, link = segments[0].head.firsts[-1] - 1, segments[0].head.previous
    if last >= promised:
        faults.append(_missing(promised, last))
    elif last == 0 and link != START:
        faults.append("the first entry does not begin the log")
    for segment in segments:
        first = segment.head.firsts[-1]
        if first > last + 1:
            faults.append(_missing(last + 1, first - 1))
        elif first <= last or segment.head.previous != link:
            faults.append(f"entry {first} does not follow on the one before")
        last, link = segment.last, segment.link
    return last, link


def _promised(newest: Segment) -> int:
    """The oldest entry that should be there: nothing was dropped while there are as many segments as were begun."""
    head = newest.head
    return head.firsts[0] if head.number > len(head.firsts) else 1


def _missing(first: int, last: int) -> str:
    return f"entry {first} is missing" if first == last else f"entries {first} to {last} are missing"
