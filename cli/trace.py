"""`variegate trace`: finds the copy on which samples were made."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from variegate import forensics
from variegate.cli.console import Progress, Secrets, add_json_option, add_passphrase_option, emit, table
from variegate.export.registry import Registry
from variegate.export.release import Release
from variegate.forensics import THRESHOLD, Verdict
from variegate.keys.errors import MisuseError

_SHOWN = 5
_EXAMPLE = "variegate trace release/ --seller seller.key --registry registry.sqlite --samples found.npz"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Fills the command's own parser: it has no commands below it."""
    parser.epilog = f"example:\n  {_EXAMPLE}"
    parser.add_argument("release", type=Path, metavar="RELEASE", help="release folder of the copies")
    parser.add_argument("--seller", required=True, metavar="KEY", help="the seller's key file or pkcs11: URI")
    parser.add_argument("--registry", type=Path, required=True, metavar="DB", help="registry of the copies")
    parser.add_argument(
        "--samples",
        type=Path,
        nargs="+",
        required=True,
        metavar="NPZ",
        help="samples of one attacker, as `attack try --out` writes them: arrays sample (N, C, H, W), label (what "
        "the device said) and clean_label (what is shown)",
    )
    add_passphrase_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=_trace)


def _trace(args: argparse.Namespace) -> int:
    release = Release.load(args.release)
    samples = forensics.read_samples(args.samples, release)
    if not samples:
        raise MisuseError("there is no sample to trace", hint="a sample counts when its two labels differ")
    if not args.registry.exists():
        raise MisuseError(f"there is no registry at {args.registry}")
    with Registry(args.registry, read_only=True) as registry:
        buyers = forensics.registered(registry, release)
    if not buyers:
        raise MisuseError("the registry has no copy of this release")
    seller = Secrets(args.passphrase_file).seller(args.seller)
    with Progress("buyers", len(buyers)) as line:
        verdict = forensics.trace(release, seller, samples, buyers, line.advance)
    data = {
        "accused": verdict.accused,
        "threshold": THRESHOLD,
        "samples": len(samples),
        "buyers": len(buyers),
        "suspects": [{**asdict(one), "corrected": verdict.corrected(one)} for one in verdict.suspects],
    }
    emit(data, args.json, lambda: _text(verdict, len(samples)))
    return 0


def _text(verdict: Verdict, samples: int) -> str:
    rows = [
        (place, one.name, f"{one.p_value:.1e}", f"{verdict.corrected(one):.1e}")
        for place, one in enumerate(verdict.suspects[:_SHOWN], 1)
    ]
    best = verdict.corrected(verdict.suspects[0])
    chance = f"an innocent buyer among {len(verdict.suspects)} looks as bad with probability {best:.1e}"
    if verdict.accused is None:
        last = f"no accusation: {chance}; it must be below {THRESHOLD:g}; more samples of the attacker may help"
    else:
        last = f"accused: {verdict.accused}; {chance} ({samples} samples)"
    return f"{table(rows, ('place', 'buyer', 'p', 'p x N'))}\n{last}"
