"""Targets of a device: its policy, the data on its disk and chip, and its exported audit log."""

from __future__ import annotations

from typing import Any

from assurance.fuzz import mutation
from assurance.fuzz.target import Target, need, pure, verdict
from testbed import artefact_parts as parts
from variegate.device_sim import audit, audit_report
from variegate.device_sim.audit import AuditEntry, AuditKey, End, Head
from variegate.device_sim.slots import BootRecord
from variegate.device_sim.trust import Trust
from variegate.isolation.policy import DevicePolicy
from variegate.keys import cbor
from variegate.keys.errors import RefusedError
from variegate.keys.primitives import sha256

_DEVICE = parts.X25519
_SEED = bytes(32)
_BODIES = 0x01
"""What follows is CBOR, a list of segments, each a list of bodies, to be signed by the log's own key."""


def _device_policy(data: bytes) -> str:
    def call() -> None:
        policy = DevicePolicy.from_toml(data)
        need(DevicePolicy.from_toml(policy.to_toml()) == policy, "another policy after writing it")

    return verdict(call)


def _boot_record(data: bytes) -> str:
    """Unchanged, and as a body with a correct checksum."""
    said = []
    for copy in (data, sha256(data) + len(data).to_bytes(2, "big") + data if len(data) < 1 << 16 else data):
        record = BootRecord.from_bytes(copy)
        need(record is None or copy.startswith(record.to_bytes()), "not canonical")
        said.append("refused" if record is None else "accepted")
    return ", ".join(said)


def _trust(data: bytes) -> str:
    return verdict(lambda: need(Trust.from_bytes(data).to_bytes() == data, "not canonical"))


def _audit_key(data: bytes) -> str:
    return verdict(lambda: need(AuditKey.from_bytes(data).to_bytes() == data, "not canonical"))


def _certified() -> AuditKey:
    public = AuditKey(_SEED, b"").public
    signature = _DEVICE.sign(b"variegate/1/audit-key/" + cbor.encode([_DEVICE.public.ueid, public]))
    return AuditKey(_SEED, cbor.encode([_DEVICE.public.ueid, public, signature]))


_KEY = _certified()


def _audit(data: bytes) -> str:
    """An export unchanged, or made of the given bodies."""
    exported = data[1:]
    if data[:1] == bytes([_BODIES]):
        try:
            exported = _signed(cbor.decode(exported, limit=audit.MAX_EXPORT_BYTES))
        except (RefusedError, OverflowError):  # no list of bodies, or one too long for a record
            return "skipped"
    return verdict(lambda: _checked(exported))


def _checked(exported: bytes) -> None:
    report = audit_report.verify(exported, _DEVICE.public)
    numbers = [entry.sequence for entry in report.entries]
    need(report.faults != () or numbers == list(range(report.dropped + 1, report.count + 1)), "a whole log with gaps")
    for entry in report.entries:
        shown = entry.line()
        need(shown.isprintable() and len(shown) <= audit.MAX_LINE, "a line that is not for people")


def _signed(value: Any) -> bytes:
    match value:
        case [bytes(end), [*segments]]:
            parts_ = [
                b"".join(_KEY.sign(b) for b in s if isinstance(b, bytes)) for s in segments if isinstance(s, list)
            ]
            return audit.to_export(_KEY.certificate, _KEY.sign(end), parts_)
    return b""


def _log() -> list[bytes]:
    """Two segments of two entries."""
    bodies: list[list[bytes]] = []
    link, sequence = audit.START, 1
    for number in (1, 2):
        segment = []
        head = Head(number=number, firsts=(1, 3)[:number], previous=link, lost=0).to_bytes()
        link = sha256(head)
        segment.append(head)
        for _ in range(2):
            entry = AuditEntry(
                sequence=sequence, boot=1, time_ms=5, event="boot", detail="a\n", previous=link
            ).to_bytes()
            link, sequence = sha256(entry), sequence + 1
            segment.append(entry)
        bodies.append(segment)
    end = End(sequence=sequence - 1, boot=1, time_ms=6, previous=link).to_bytes()
    value = [end, bodies]
    return [bytes([_BODIES]) + cbor.encode(value), b"\0" + _signed(value)]


TARGETS = (
    Target(
        name="device_policy",
        opened=pure(_device_policy),
        seeds=lambda: [DevicePolicy(require=("seccomp", "memory")).to_toml(), b'schema = 1\nisolation = "none"\n'],
        mutate=mutation.of_toml,
        words=(
            *(b"schema", b"isolation", b"secret_pages", b"strict", b"require", b"ram_mib", b"hang_s", b"restarts"),
            *(b"restart_window_s", b"debug", b'"process"', b"inf", b"nan", b"1e-7", b"\\U0001F600", b'"""', b"true"),
        ),
    ),
    Target(
        name="boot_record",
        opened=pure(_boot_record),
        seeds=lambda: [
            BootRecord().to_bytes(),
            BootRecord(7, "a", "b", 2, passed=True).to_bytes()[34:],
            BootRecord(1, None, "a", 3).to_bytes() + bytes(9),
        ],
        mutate=mutation.of_cbor,
        cap=512,
    ),
    Target(
        name="trust",
        opened=pure(_trust),
        seeds=lambda: [
            Trust(0, parts.SIGNER.root).to_bytes(),
            Trust(1, parts.SIGNER.root, parts.SIGNER.root, bytes(32)).to_bytes(),
        ],
        mutate=mutation.of_cbor,
        cap=8192,
    ),
    Target(name="audit_key", opened=pure(_audit_key), seeds=lambda: [_KEY.to_bytes()], mutate=mutation.of_cbor),
    Target(name="audit", opened=pure(_audit), seeds=_log, mutate=mutation.behind(1, mutation.of_cbor), cap=8192),
)
