"""`variegate device`: make a simulated device, flash it, ask it for labels. Needs the bare installation only."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from variegate.cli import device_attest, device_audit, device_image, device_serve
from variegate.cli.console import Progress, add_json_option, emit, note, table
from variegate.cli.device_open import add_broker_options, host_line, isolated, open_device
from variegate.cli.options import command
from variegate.device_sim.device import Device, DeviceStatus
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import host_for
from variegate.isolation.host import Isolated
from variegate.isolation.machine import summary
from variegate.isolation.policy import MAX_POLICY_BYTES, DevicePolicy
from variegate.keys.arrays import read_npy
from variegate.keys.errors import LimitError, MisuseError, Refusal, RefusedError
from variegate.keys.files import PUBLIC, check_new, read_capped, write_atomic
from variegate.keys.manifest import Manifest
from variegate.keys.primitives import KEM_HYBRID, KEM_NAMES
from variegate.keys.signing import MAX_STATEMENT_BYTES, SellerRoot
from variegate.runtime.port import LabelPort

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  it has no other name
_MAX_IMAGE_BYTES = 1 << 30
_LONGEST_WAIT_S = 600.0


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the group's commands."""
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_making(commands)
    _add_asking(commands)
    _add_showing(commands)


def _add_making(commands: _Commands) -> None:
    example = "variegate device new camera7 --class camera-v1 --root seller.root"
    new = _command(commands, "new", "make a device that trusts a seller's root", example)
    new.add_argument("--class", required=True, dest="device_class", metavar="CLASS", help="kind of device")
    new.add_argument("--root", type=Path, required=True, help="the root, as `variegate keys root` writes it")
    new.add_argument("--kem", choices=KEM_NAMES, default=KEM_HYBRID, help="key agreement (default: %(default)s)")
    help_tpm = "keep its key and counters in a TPM 2.0, swtpm:path=SOCKET or device:PATH (needs tpm2-pytss)"
    new.add_argument("--tpm", metavar="TCTI", help=help_tpm)
    help_policy = "TOML file: how its enclave is isolated (default: a process of its own, secret pages)"
    new.add_argument("--policy", type=Path, metavar="PATH", help=help_policy)
    new.set_defaults(run=_new)

    example = "variegate device identity camera7 --out camera7.json"
    identity = _command(commands, "identity", "write the public identity, for which the seller seals copies", example)
    identity.add_argument("--out", type=Path, required=True, metavar="PATH", help="JSON file; must not be there yet")
    identity.set_defaults(run=_identity)

    example = (
        "variegate device flash camera7 acme.vgc\n  variegate device flash camera7 acme.vge --component component.vgb\n"
        "  variegate device flash camera7 acme-2.vge"
    )
    write = _command(commands, "flash", "install an artefact", example)
    help_artefact = "single file (.vgc), or an envelope (.vge): with --component, unless the device holds its component"
    write.add_argument("artefact", type=Path, help=help_artefact)
    write.add_argument("--component", type=Path, metavar="PATH", help="the release's component.vgb")
    add_broker_options(write)
    write.set_defaults(run=_flash)

    example = "variegate device follow camera7 to2.root"
    follow = _command(commands, "follow", "follow a rotation: trust the seller's next root", example)
    follow.add_argument("statement", type=Path, help="statement of `variegate keys rotate`")
    follow.set_defaults(run=_follow)


def _add_asking(commands: _Commands) -> None:
    example = "variegate device classify camera7 sign.png frames.npy"
    classify = _command(commands, "classify", "print one label for each image", example)
    help_images = "PNG or JPEG (needs Pillow), or .npy of one frame (C, H, W) or many (N, C, H, W)"
    classify.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help=help_images)
    help_receipt = "write a receipt, the device's signature of frames and labels; for one file of images"
    classify.add_argument("--receipt", type=Path, metavar="PATH", help=help_receipt)
    add_broker_options(classify)
    add_json_option(classify)
    classify.set_defaults(run=_classify)

    line = "answer labels over HTTP (Open Inference Protocol v2) and a Unix socket"
    device_serve.add_options(_command(commands, "serve", line, device_serve.EXAMPLE))


def _add_showing(commands: _Commands) -> None:
    status = _command(commands, "status", "show a device's state", "variegate device status camera7 --json")
    add_json_option(status)
    status.set_defaults(run=_status)

    log = _command(commands, "log", "print the log, with the reasons of refusals", "variegate device log camera7")
    add_json_option(log)
    log.set_defaults(run=_log)

    line = "boot, and list each protection of the enclave: on, off or unavailable"
    protections = _command(commands, "protections", line, "variegate device protections camera7")
    add_broker_options(protections)
    add_json_option(protections)
    protections.set_defaults(run=_protections)

    example = "variegate device attest camera7 --nonce $(variegate broker challenge broker) --out camera7.eat"
    what = "the device's folder, or the http:// or https:// address of a device that serves with --evidence"
    attest = _command(
        commands, "attest", "sign evidence of the software that the device runs", example, what=what, kind=str
    )
    device_attest.add_attest(attest)

    example = "variegate device receipt frames.receipt --identity camera7.json --frames frames.npy"
    line = "verify a receipt that `classify --receipt` wrote"
    device_attest.add_receipt(_command(commands, "receipt", line, example, what="the receipt's file"))

    example = "variegate device image camera7 --out camera7.image"
    line = "make a bootable image of a flashed device over a TPM, locked against its own root (Debian 12, as any user)"
    device_image.add_image(_command(commands, "image", line, example))

    example = "variegate device boot camera7.image --tpm-state camera7.tpm --port 8000"
    line = "boot an image under QEMU; the first boot binds the device's key to it"
    device_image.add_boot(_command(commands, "boot", line, example, what="the image's folder"))

    example = (
        "variegate device audit camera7 --export camera7.audit\n"
        "  variegate device audit camera7.audit --identity camera7.json"
    )
    audit = _command(commands, "audit", "verify the signed log: exit status 1 when it is broken", example)
    device_audit.add_arguments(audit)


def _new(args: argparse.Namespace) -> int:
    root = SellerRoot.from_bytes(read_capped(args.root, limit=MAX_STATEMENT_BYTES))
    policy = DevicePolicy()
    if args.policy is not None:
        policy = DevicePolicy.from_toml(read_capped(args.policy, limit=MAX_POLICY_BYTES))
    made = Device.create(
        args.folder, args.device_class, root, kem=args.kem, tpm=args.tpm, policy=policy, host=host_for(policy)
    )
    with made as device:
        note(f"made {args.folder}; device {device.ueid.hex()}, root {root.fingerprint.hex()}")
    return 0


def _identity(args: argparse.Namespace) -> int:
    with open_device(args) as device:
        public = device.identity
    write_atomic(args.out, public.to_json().encode(), mode=PUBLIC)
    note(f"wrote {args.out}; fingerprint {public.fingerprint.hex()}")
    return 0


def _flash(args: argparse.Namespace) -> int:
    with open_device(args) as device, Progress("chunks") as line:
        report = flash(
            device, args.artefact, component_file=args.component, progress=lambda _done, _all: line.advance()
        )
    reused = report.chunks - report.written
    moved = f"{report.written} chunks written, {reused} kept, {report.moved} bytes read"
    note(f"confirmed sequence {report.sequence} in slot {report.slot}; {moved}")
    return 0


def _classify(args: argparse.Namespace) -> int:
    if args.receipt is not None:
        if len(args.images) > 1:
            raise MisuseError("a receipt is for one file of images", hint="stack frames in one .npy file")
        check_new(args.receipt)
    answers: list[dict[str, Any]] = []
    try:
        with open_device(args) as device:
            enclave = device.boot() if args.receipt is None else isolated(device)
            patient = _Patient(enclave)
            # Charged queries must be answered, so everything is read before the first query.
            shown = [(path, _frames(path, enclave.manifest)) for path in args.images]
            for path, frames in shown:
                labels, token = patient.classify(frames, signed=args.receipt is not None)
                answers.append({"image": str(path), "labels": labels.tolist()})
                if token is not None:
                    write_atomic(args.receipt, token, mode=PUBLIC)
    finally:
        if answers:  # charged labels are shown even if a later query fails
            emit(answers, args.json, lambda: "\n".join(str(label) for one in answers for label in one["labels"]))
    return 0


def _status(args: argparse.Namespace) -> int:
    with open_device(args) as device:
        facts = _facts(device.status(), device.counter)
    emit(facts, args.json, lambda: _text(facts))
    return 0


def _log(args: argparse.Namespace) -> int:
    with open_device(args) as device:
        lines = device.log()
    emit(lines, args.json, lambda: "\n".join(lines))
    return 0


def _follow(args: argparse.Namespace) -> int:
    with open_device(args) as device:
        device.follow(read_capped(args.statement, limit=MAX_STATEMENT_BYTES))
        note(f"{args.folder} trusts root {device.root.fingerprint.hex()}")
    return 0


class _Patient:
    """Asks an enclave, and waits where the signed rate asks for it: a device starts with nothing saved up."""

    def __init__(self, enclave: LabelPort) -> None:
        self._enclave = enclave
        self._told = False

    def classify(self, frames: NDArray[Any], *, signed: bool) -> tuple[NDArray[np.int64], bytes | None]:
        """Labels of frames, and the receipt where one is wanted.

        Raises:
            LimitError: The budget is spent, or the rate asks for more than `_LONGEST_WAIT_S`.
        """
        left = _LONGEST_WAIT_S
        while True:
            try:
                return self._labels(frames, signed)
            except LimitError as error:
                wait = error.retry_after_s
                if wait is None:
                    raise
                if wait > left:
                    raise LimitError(f"{error.message}: allowed in {wait:.0f} s", retry_after_s=wait) from error
            if not self._told:
                note(f"the policy's rate allows this in {wait:.1f} s: waiting")
                self._told = True
            time.sleep(wait)
            left -= wait

    def _labels(self, frames: NDArray[Any], signed: bool) -> tuple[NDArray[np.int64], bytes | None]:
        if signed and isinstance(self._enclave, Isolated):
            return self._enclave.classify_with_receipt(frames)
        return self._enclave.classify_batch(frames), None


def _protections(args: argparse.Namespace) -> int:
    with open_device(args) as device:
        protections = device.boot().status().protections
    rows = [(p.name, str(p.state), p.reason) for p in (*protections, summary(protections))]
    facts = [dict(zip(("name", "state", "reason"), row, strict=True)) for row in rows]
    emit(facts, args.json, lambda: f"{table(rows[:-1])}\n{host_line(protections)}")
    return 0


def _frames(path: Path, manifest: Manifest) -> NDArray[Any]:
    """Frames of an image file as the manifest wants them; the enclave checks shape and values."""
    data = read_capped(path, limit=_MAX_IMAGE_BYTES)
    if path.suffix.lower() == ".npy":
        frames = read_npy(data, str(path))
        return np.ascontiguousarray(frames if frames.ndim > len(manifest.shape) else frames[np.newaxis])
    from PIL import Image  # noqa: PLC0415  an extra

    channels, height, width = manifest.shape
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
            size = image.size
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB")) if size == (width, height) else None
    except (OSError, ValueError, LookupError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise RefusedError(Refusal.INPUT, f"{path} is not a PNG or JPEG image") from error
    if pixels is None:
        message = f"{path} has {size[0]} x {size[1]} pixels, the copy takes {width} x {height}"
        raise RefusedError(Refusal.INPUT, message, hint="crop and scale it first")
    frame = np.ascontiguousarray(pixels.reshape(height, width, -1).transpose(2, 0, 1))[np.newaxis]
    return frame if manifest.dtype == "uint8" else frame.astype(np.float32) / np.float32(255)


def _facts(status: DeviceStatus, counter: Callable[[str], int]) -> dict[str, Any]:
    return {
        "ueid": status.ueid.hex(),
        "device_class": status.device_class,
        "lifecycle": str(status.lifecycle),
        "boots": status.boots,
        "security_counter": status.security_counter,
        "sequence": status.sequence,
        "root": status.root.hex(),
        "root_serial": status.root_serial,
        "confirmed": status.record.confirmed,
        "trial": status.record.trial,
        "tries": status.record.tries,
        "images": {slot: _image_facts(manifest, counter) for slot, manifest in status.images.items()},
    }


def _image_facts(manifest: Manifest, counter: Callable[[str], int]) -> dict[str, object]:
    budget = manifest.policy.budget
    return {
        "buyer": manifest.buyer,
        "epoch": manifest.epoch,
        "sequence": manifest.sequence,
        "security_counter": manifest.security_counter,
        "budget": budget,
        "remaining": None if budget is None else max(0, budget - counter(f"budget.{manifest.epoch}")),
        "not_after": manifest.not_after,
    }


def _text(facts: dict[str, Any]) -> str:
    rows = [(f"{name.replace('_', ' ')}:", _word(value)) for name, value in facts.items() if name != "images"]
    for slot, image in facts["images"].items():
        rows.append((f"slot {slot}:", ", ".join(f"{k.replace('_', ' ')} {_word(v)}" for k, v in image.items())))
    return table(rows)


def _word(value: object) -> str:
    return "none" if value is None else str(value)


def _command(
    commands: _Commands,
    name: str,
    line: str,
    example: str,
    *,
    what: str = "the device's folder",
    kind: Callable[[str], object] = Path,
) -> argparse.ArgumentParser:
    parser = command(commands, name, line, example)
    parser.add_argument("folder", type=kind, help=what)
    return parser
