"""`variegate export copy` and `fleet`: sealed copies for buyers."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from variegate.cli.console import Progress, Secrets, emit, note, read_file, table
from variegate.export.fleet import COMPONENT_FILE, Exporter, FleetReport
from variegate.export.fleet_list import FleetLine, check_buyer, check_number, read_list
from variegate.export.outbox import prepare_folder
from variegate.export.registry import Registry
from variegate.export.sealing import Terms
from variegate.keys.broker import BrokerPublic
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import Policy
from variegate.keys.rotation import Revocations
from variegate.keys.sqlite_file import refuse_folder
from variegate.keys.uri import open_signer

_MAX_NUMBER = (1 << 63) - 1
_MAX_VENDOR = 128


def copy(args: argparse.Namespace) -> int:
    """Seals one copy."""
    check_number(args.epoch, "--epoch")
    if args.security_counter is not None:
        check_number(args.security_counter, "--security-counter")
    device = DevicePublic.from_json(read_file(args.device))
    wanted = FleetLine(
        buyer=check_buyer(args.buyer), device=device, epoch=args.epoch, security_counter=args.security_counter
    )
    return _export(args, [wanted], cohort=None, jobs=1)


def fleet(args: argparse.Namespace) -> int:
    """Seals a copy for every line of a list."""
    if args.jobs < 1:
        raise MisuseError("--jobs must be at least 1")
    return _export(args, read_list(args.list), cohort=args.cohort, jobs=args.jobs)


def _export(args: argparse.Namespace, wanted: list[FleetLine], *, cohort: str | None, jobs: int) -> int:
    terms = _terms(args)
    secrets = Secrets(args.passphrase_file)
    seller = secrets.seller(args.seller)
    signer = None if args.signer is None else open_signer(args.signer, secrets.of(args.signer))
    exporter = Exporter(args.release, seller, terms, args.out, cohort, signer)
    # Release and folder come before the registry, so that a wrong one leaves no empty registry behind.
    note(f"release: {exporter.release.name}, base sha256 {exporter.release.base_digest.hex()[:16]}")
    revoked = None if args.revoked is None else Revocations.verify(read_file(args.revoked), exporter.root, 0)
    registry = args.registry or args.release.resolve().parent / "registry.sqlite"
    refuse_folder(registry)
    if revoked is None:  # else the registry is not empty, and a refused export makes no folder
        prepare_folder(args.out)
    if not registry.exists():
        note(f"{registry} is new; a device that holds a copy already may need --security-counter: see its status")
    with Registry(registry) as entered, Progress("copies", len(wanted)) as progress:
        if revoked is not None:
            # Remembered also where it stops this export: the next must not get by with an older list.
            entered.remember(revoked)
            _refuse_revoked(revoked, wanted)
        seen = 0

        def advance(done: int, total: int) -> None:  # noqa: ARG001
            nonlocal seen
            progress.advance(done - seen)
            seen = done

        report = exporter.fleet(wanted, entered, jobs=jobs, progress=advance)
    data = {
        "made": report.made,
        "skipped": report.skipped,
        "folder": str(report.folder),
        "registry": str(registry),
    }
    emit(data, args.json, lambda: _exported(report, registry, cohort))
    return 0


def _exported(report: FleetReport, registry: Path, cohort: str | None) -> str:
    rows = [("made", str(report.made)), ("kept", str(report.skipped)), ("folder", str(report.folder))]
    if cohort is not None:
        rows.append(("component", str(report.folder / COMPONENT_FILE)))
    return table([*rows, ("registry", str(registry))])


def _terms(args: argparse.Namespace) -> Terms:
    for name, least in (("budget", 1), ("rate_per_hour", 1), ("burst", 1), ("grace", 0), ("not_after", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value <= _MAX_NUMBER:
            bounds = "lie from 1970 on" if name == "not_after" else f"lie in {least}..{_MAX_NUMBER}"
            raise MisuseError(f"--{name.replace('_', '-')} must {bounds}")
    if args.not_after is not None and args.not_after <= time.time():
        raise MisuseError("--not-after has passed already", hint="no device would open the copy")
    if not 1 <= len(args.vendor) <= _MAX_VENDOR or not args.vendor.isprintable():
        raise MisuseError(f"--vendor has 1 to {_MAX_VENDOR} printable characters")
    policy = Policy(budget=args.budget, rate_per_hour=args.rate_per_hour, burst=args.burst, grace_s=args.grace)
    broker = None if args.broker is None else BrokerPublic.from_json(read_file(args.broker))
    return Terms(
        vendor=args.vendor,
        policy=policy,
        not_after=args.not_after,
        broker=broker,
        allow_downgrade=args.allow_downgrade,
    )


def _refuse_revoked(revoked: Revocations, wanted: list[FleetLine]) -> None:
    hit = [w for w in wanted if revoked.contains(w.device.ueid)]
    if hit:
        raise RefusedError(
            Refusal.REVOKED,
            f"{len(hit)} of these devices are revoked, the first is {hit[0].device.ueid.hex()}",
            hint="take them off the list; nothing was sealed",
        )
