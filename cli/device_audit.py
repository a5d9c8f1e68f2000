"""`variegate device audit`: verifies a device's audit log in place, or an export with the public identity alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from variegate.cli.console import add_json_option, emit, note
from variegate.cli.device_open import open_device
from variegate.device_sim.audit import MAX_EXPORT_BYTES, moment
from variegate.device_sim.audit_report import AuditReport, verify
from variegate.keys.errors import MisuseError
from variegate.keys.files import PUBLIC, read_capped, write_atomic
from variegate.keys.identity import DevicePublic
from variegate.keys.public_identity import MAX_PUBLIC_TEXT_BYTES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to the group's parser, which has `folder` already."""
    help_identity = "the device's public identity, from the seller; an export needs it (default: from the chip)"
    parser.add_argument("--identity", type=Path, metavar="PATH", help=help_identity)
    help_export = "also write the signed log there, for verification elsewhere; must not be there yet"
    parser.add_argument("--export", type=Path, metavar="PATH", help=help_export)
    add_json_option(parser)
    parser.set_defaults(run=_audit)


def _audit(args: argparse.Namespace) -> int:
    public = None
    if args.identity is not None:
        public = DevicePublic.from_json(read_capped(args.identity, limit=MAX_PUBLIC_TEXT_BYTES))
    if args.folder.is_file():
        if public is None:
            raise MisuseError("an export is verified by the device's identity", hint="give --identity device.json")
        if args.export is not None:
            raise MisuseError(f"{args.folder} is an export already", hint="leave out --export")
        export = read_capped(args.folder, limit=MAX_EXPORT_BYTES)
    else:
        with open_device(args) as device:
            export = device.export_log()
            public = public or device.identity
    if args.export is not None:
        write_atomic(args.export, export, mode=PUBLIC)
        note(f"wrote {args.export}")
    report = verify(export, public)
    emit(_facts(report), args.json, lambda: _text(report))
    return 1 if report.faults else 0


def _facts(report: AuditReport) -> dict[str, Any]:
    return {
        "ueid": report.ueid.hex(),
        "whole": not report.faults,
        "faults": list(report.faults),
        "counted": report.count,
        "dropped": report.dropped,
        "lost": report.lost,
        "boot": report.boot,
        "time": report.time_ms / 1000,
        "entries": [
            {
                "sequence": entry.sequence,
                "boot": entry.boot,
                "time": entry.time_ms / 1000,
                "event": entry.event,
                "detail": entry.detail,
            }
            for entry in report.entries
        ],
    }


def _text(report: AuditReport) -> str:
    lines = [f"{entry.sequence} {moment(entry.time_ms)} boot {entry.boot} {entry.words()}" for entry in report.entries]
    if report.dropped:
        lines.insert(0, f"entries 1 to {report.dropped} were dropped to make room")
    lines.append(
        f"device {report.ueid.hex()}: {len(report.entries)} of {report.count} entries verified, "
        f"signed at boot {report.boot}, {moment(report.time_ms)}"
    )
    lines += [f"BROKEN: {fault}" for fault in report.faults]
    return "\n".join(lines)
