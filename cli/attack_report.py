"""`variegate attack report` and `attack evidence`: writes a campaign's report, and verifies a signed one."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from variegate.cli.console import Secrets, add_json_option, add_passphrase_option, emit, note
from variegate.cli.options import command
from variegate.keys.files import read_capped
from variegate.keys.signing import SellerRoot

_ROOT_BYTES = 4096


def add_commands(commands: Any) -> None:
    """Adds both to the group's commands."""
    report = command(
        commands,
        "report",
        "write the report of a campaign: a page, tables, evidence for assessors",
        "variegate attack report gtsrb --out gtsrb-report\n"
        "  variegate attack report gtsrb --out gtsrb-report --sign seller.key --assessment tara.toml",
    )
    report.add_argument("campaign", type=Path, metavar="CAMPAIGN", help="a campaign's folder, as `run` makes it")
    help_out = "folder to write; an earlier report of the campaign is replaced (default: CAMPAIGN/report)"
    report.add_argument("--out", type=Path, metavar="DIR", help=help_out)
    help_sign = "sign the evidence with this key file or pkcs11: URI; unsigned without it"
    report.add_argument("--sign", metavar="KEY", help=help_sign)
    help_assessment = "an assessor's judgement of ISO/SAE 21434's factors; cautious defaults without it"
    report.add_argument("--assessment", type=Path, metavar="TOML", help=help_assessment)
    add_passphrase_option(report)
    report.set_defaults(run=_report)

    line = "evidence of a report"
    evidence = commands.add_parser("evidence", help="verify a report's evidence", description=line)
    below = evidence.add_subparsers(metavar="COMMAND", required=True)
    verify = command(
        below,
        "verify",
        "verify a report's signature, and that no file differs from the signed one",
        "variegate attack evidence verify gtsrb-report --root seller.root",
    )
    verify.add_argument("folder", type=Path, metavar="DIR", help="a report's folder, with evidence/ in it")
    help_root = "public keys of the expected signer, as `variegate keys root` writes them"
    verify.add_argument("--root", type=Path, required=True, metavar="FILE", help=help_root)
    add_json_option(verify)
    verify.set_defaults(run=_verify)


def _report(args: argparse.Namespace) -> int:
    from variegate.attack.report.assessment import MAX_ASSESSMENT_BYTES, parse  # noqa: PLC0415
    from variegate.attack.report.write import write_report  # noqa: PLC0415

    assessment = None
    if args.assessment is not None:
        assessment = parse(read_capped(args.assessment, limit=MAX_ASSESSMENT_BYTES))
    signer = None if args.sign is None else Secrets(args.passphrase_file).seller(args.sign).signer
    out = args.out if args.out is not None else args.campaign / "report"
    page = write_report(args.campaign, out, signer=signer, assessment=assessment)
    note(f"wrote {page}" + ("" if signer is not None else "; its evidence is not signed"))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from variegate.attack.report.manifest import check_folder, verify_evidence  # noqa: PLC0415

    check_folder(args.folder)
    root = SellerRoot.from_bytes(read_capped(args.root, limit=_ROOT_BYTES))
    signature = verify_evidence(args.folder, root)
    emit(
        asdict(signature),
        args.json,
        lambda: f"{signature.files} files are those signed by {signature.fingerprint}; manifest {signature.digest}",
    )
    return 0
