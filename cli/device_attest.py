"""`variegate device attest` and `receipt`: asks a device for evidence, and verifies a receipt."""

from __future__ import annotations

import argparse
from pathlib import Path

from variegate.attest import receipt
from variegate.attest.client import evidence_from
from variegate.attest.evidence import NONCE_BYTES
from variegate.cli.console import add_json_option, emit, note, table
from variegate.cli.device_open import add_broker_options, isolated, open_device
from variegate.keys.arrays import read_npy
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.files import PUBLIC, check_new, read_capped, write_atomic
from variegate.keys.identity import DevicePublic
from variegate.keys.public_identity import MAX_PUBLIC_TEXT_BYTES

_MAX_FRAMES_BYTES = 1 << 30


def add_attest(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `attest`, which has `folder` already."""
    parser.add_argument(
        "--nonce", type=_nonce, required=True, metavar="HEX", help="the verifier's nonce, 8 to 64 bytes"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="token; must not be there yet")
    parser.add_argument("--ca", type=Path, metavar="PEM", help="CA of the certificate of an https:// device")
    add_broker_options(parser)
    parser.set_defaults(run=_attest)


def add_receipt(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `receipt`, which has `folder` already: here, the receipt's file."""
    parser.add_argument("--identity", type=Path, required=True, metavar="PATH", help="the device's public identity")
    parser.add_argument("--frames", type=Path, metavar="NPY", help="frames (N, C, H, W) that the receipt must be for")
    add_json_option(parser)
    parser.set_defaults(run=_receipt)


def _attest(args: argparse.Namespace) -> int:
    check_new(args.out)  # before a boot is spent on it
    if args.folder.startswith(("http://", "https://")):
        token = evidence_from(args.folder, args.nonce, ca=args.ca)
    else:
        args.folder = Path(args.folder)
        with open_device(args) as device:
            token = isolated(device).evidence(args.nonce)
    write_atomic(args.out, token, mode=PUBLIC)
    note(f"wrote {args.out}; a seller appraises it with `variegate broker appraise`")
    return 0


def _receipt(args: argparse.Namespace) -> int:
    public = DevicePublic.from_json(read_capped(args.identity, limit=MAX_PUBLIC_TEXT_BYTES))
    given = receipt.verify(read_capped(args.folder, limit=receipt.MAX_RECEIPT_BYTES), public.signing_public)
    if given.ueid != public.ueid:
        raise RefusedError(Refusal.WRONG_DEVICE, "receipt names another device than the one that signed it")
    if args.frames is not None:
        frames = read_npy(read_capped(args.frames, limit=_MAX_FRAMES_BYTES), str(args.frames))
        given.require_frames(frames)
    facts = {
        "ueid": given.ueid.hex(),
        "model": given.model.hex(),
        "boot": given.boot_count,
        "sequence": given.sequence,
        "time": given.time_s,
        "frames": given.frames.hex(),
        "frames_checked": args.frames is not None,
        "labels": list(given.labels),
    }
    emit(facts, args.json, lambda: table([(f"{name.replace('_', ' ')}:", str(value)) for name, value in facts.items()]))
    return 0


def _nonce(text: str) -> bytes:
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not hexadecimal: {text}") from None
    if len(nonce) not in NONCE_BYTES:
        least, most = NONCE_BYTES[0], NONCE_BYTES[-1]
        raise argparse.ArgumentTypeError(f"a nonce is {least} to {most} bytes, and this is {len(nonce)}")
    return nonce
