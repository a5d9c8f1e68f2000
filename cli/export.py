"""`variegate export`: a release from a base model, and sealed copies for buyers."""

from __future__ import annotations

import argparse
import json
import math
import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.cli import export_options
from variegate.cli.console import (
    Progress,
    Secrets,
    emit,
    note,
    table,
)
from variegate.export.arrays import read_arrays
from variegate.export.calibrate import Calibration, Tried, calibrate, candidates
from variegate.export.fleet import COMPONENT_FILE, Exporter, FleetReport
from variegate.export.fleet_list import Wanted, check_buyer, check_number, read_list
from variegate.export.fuse import frame_shape
from variegate.export.intake import base as bases
from variegate.export.intake import weights
from variegate.export.intake.contract import Contract, InputSpec
from variegate.export.outbox import prepare_folder
from variegate.export.parity import measure
from variegate.export.registry import Registry
from variegate.export.release import CANARIES, check_name, check_new, make_release
from variegate.export.rewriters import Qim, Rewriter, from_parameters, to_parameters
from variegate.export.sealing import Terms
from variegate.keys.broker import BrokerPublic
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import Policy
from variegate.keys.rotation import Revocations
from variegate.keys.uri import open_signer

_RANK = 4
_LIST_LIMIT = 64
_SHOWN = 32
"""Characters of a buyer id in a table."""
_MAX_NUMBER = (1 << 63) - 1
_MAX_VENDOR = 128
_UEID = re.compile("[0-9a-f]{1,66}")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the group's commands."""
    commands = parser.add_subparsers(metavar="COMMAND")
    export_options.prepare(commands).set_defaults(run=_prepare)
    export_options.copy(commands).set_defaults(run=_copy)
    export_options.fleet(commands).set_defaults(run=_fleet)
    export_options.registry(commands).set_defaults(run=_registry)


def _prepare(args: argparse.Namespace) -> int:
    if not (math.isfinite(args.loss) and args.loss >= 0):
        raise MisuseError("--loss must be a number of points from 0")
    check_new(args.out)
    name = check_name(args.out.resolve().name if args.name is None else args.name)
    spec = InputSpec(
        layout=args.layout,
        value_range=args.value_range,
        mean=args.mean,
        std=args.std,
        outputs=args.outputs,
        class_names=_class_names(args.class_names),
    )
    base = _load_base(args, spec)
    note(f"base: {base.contract.classes} classes, {base.contract.image_shape}, sha256 {base.digest.hex()[:16]}")
    images, truth = _validation(args, base)
    calibration = None
    if args.parameters is not None:
        rewriter = _read_parameters(args.parameters, args.rewriter, base.contract)
    elif truth is None:
        rewriter = next(candidates(args.rewriter, base.contract))
        note("no --validation: default parameters, and what they cost in accuracy is not known")
    else:
        calibration = calibrate(
            base,
            args.rewriter,
            measure(base, images),
            truth,
            dtype=args.dtype,
            allowed_points=args.loss,
            progress=_show_tried,
        )
        rewriter = calibration.rewriter
    release, report = make_release(name, base, rewriter, images)
    release.save(args.out, calibration)
    data = {
        "release": name,
        "rewriter": to_parameters(rewriter),
        "parity": asdict(report),
        "calibration": None if calibration is None else asdict(calibration.tried[-1]),
    }
    emit(data, args.json, lambda: _prepared(args.out, rewriter, base.contract, calibration, report.images))
    return 0


def _prepared(out: Path, rewriter: Rewriter, contract: Contract, calibration: Calibration | None, images: int) -> str:
    rows = [("release", str(out)), ("rewriter", json.dumps(to_parameters(rewriter)))]
    if isinstance(rewriter, Qim):
        steps = ", ".join(f"{step:.3g}" for step in rewriter.real_steps(contract))
        rows.append(("attractors", f"B = {rewriter.messages} messages for each class, d = {steps}"))
        if calibration is not None:
            rows.append(("noise", f"8 grey levels of it turn {100 * calibration.turned:.1f} % of the base's labels"))
    if calibration is not None:
        last = calibration.tried[-1]
        rows.append(("accuracy", f"{100 * last.accuracy:.2f} % over {calibration.copies} copies"))
        rows.append(("base", f"{100 * calibration.base_accuracy:.2f} % on the same {calibration.images} images"))
    rows.append(("parity", f"labels equal on {images} images"))
    return table(rows)


def _show_tried(tried: Tried) -> None:
    note(f"tried {json.dumps(tried.parameters)}: costs {tried.loss_points:.2f} points (+- {tried.error_points:.2f})")


def _load_base(args: argparse.Namespace, spec: InputSpec) -> bases.Base:
    if ":" not in args.base:
        if args.weights or args.shape:
            raise MisuseError("--weights and --shape belong to a torch module")
        return bases.load_base(_existing(Path(args.base)), spec)
    if args.shape is None or len(args.shape) != _RANK - 1:
        raise MisuseError("a torch module needs --shape, as in 3,32,32")
    module = weights.module_from_spec(args.base)
    if args.weights is not None:
        weights.load_weights(module, _existing(args.weights))
    return bases.from_torch(module, args.shape, spec)


def _validation(args: argparse.Namespace, base: bases.Base) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Images as devices will pass them, and their classes when a set was given."""
    shape = frame_shape(base.contract)
    if args.validation is None:
        noise = np.random.default_rng(0).integers(0, 256, (256, *shape), dtype=np.uint8)
        return (noise if args.dtype == "uint8" else noise / np.float32(255)), None
    images, truth = read_arrays(args.validation, ("x", "y"))
    if images.shape[1:] != shape or truth.shape != images.shape[:1] or truth.dtype.kind not in "iu":
        raise MisuseError(f"validation images must be (N, {', '.join(map(str, shape))}) with N whole classes")
    if len(images) < CANARIES:
        raise MisuseError(
            f"{args.validation} is empty" if not len(images) else f"{args.validation} holds {len(images)} images",
            hint=f"give {CANARIES} at least, better a thousand",
        )
    if truth.min(initial=0) < 0 or truth.max(initial=0) >= base.contract.classes:
        raise MisuseError(f"validation classes must lie in 0..{base.contract.classes - 1}")
    if str(images.dtype) not in {"uint8", "float32"} or str(images.dtype) != args.dtype:
        raise MisuseError(f"validation images are {images.dtype}, devices will pass {args.dtype}", hint="see --dtype")
    # As one condition: what is not a number is in no range.
    if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
        raise MisuseError("validation images must be finite and lie in 0..1", hint="divide bytes by 255")
    return images, truth.astype(np.int64)


def _read_parameters(path: Path, kind: str, contract: Contract) -> Rewriter:
    """Parameters from a file; those it leaves out are the first candidate's, which fits the image size."""
    try:
        table_ = tomllib.loads(_read(path).decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MisuseError(f"{path} cannot be read as TOML: {error}") from error
    if table_.pop("schema", None) != 1:
        raise MisuseError(f"{path}: schema is missing or not 1")
    first = next(candidates(str(table_.get("kind", kind)), contract))
    return from_parameters({**to_parameters(first), **table_})


def _copy(args: argparse.Namespace) -> int:
    check_number(args.epoch, "--epoch")
    if args.security_counter is not None:
        check_number(args.security_counter, "--security-counter")
    device = DevicePublic.from_json(_read(args.device))
    wanted = Wanted(
        buyer=check_buyer(args.buyer), device=device, epoch=args.epoch, security_counter=args.security_counter
    )
    return _export(args, [wanted], cohort=None, jobs=1)


def _fleet(args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise MisuseError("--jobs must be at least 1")
    return _export(args, read_list(args.list), cohort=args.cohort, jobs=args.jobs)


def _export(args: argparse.Namespace, wanted: list[Wanted], *, cohort: str | None, jobs: int) -> int:
    terms = _terms(args)
    secrets = Secrets(args.passphrase_file)
    seller = secrets.seller(args.seller)
    signer = None if args.signer is None else open_signer(args.signer, secrets.of(args.signer))
    exporter = Exporter(args.release, seller, terms, args.out, cohort, signer)
    # Release and folder come before the registry, so that a wrong one leaves no empty registry behind.
    note(f"release: {exporter.release.name}, base sha256 {exporter.release.base_digest.hex()[:16]}")
    revoked = None if args.revoked is None else Revocations.verify(_read(args.revoked), exporter.root, 0)
    if revoked is None:  # else the registry is not empty, and a refused export makes no folder
        prepare_folder(args.out)
    registry = args.registry or args.release.resolve().parent / "registry.sqlite"
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
    if not 1 <= len(args.vendor) <= _MAX_VENDOR or not args.vendor.isprintable():
        raise MisuseError(f"--vendor has 1 to {_MAX_VENDOR} printable characters")
    policy = Policy(budget=args.budget, rate_per_hour=args.rate_per_hour, burst=args.burst, grace_s=args.grace)
    broker = None if args.broker is None else BrokerPublic.from_json(_read(args.broker))
    return Terms(
        vendor=args.vendor,
        policy=policy,
        not_after=args.not_after,
        broker=broker,
        allow_downgrade=args.allow_downgrade,
    )


def _refuse_revoked(revoked: Revocations, wanted: list[Wanted]) -> None:
    hit = [w for w in wanted if revoked.contains(w.device.ueid)]
    if hit:
        raise RefusedError(
            Refusal.REVOKED,
            f"{len(hit)} of these devices are revoked, the first is {hit[0].device.ueid.hex()}",
            hint="take them off the list; nothing was sealed",
        )


def _registry(args: argparse.Namespace) -> int:
    if not args.path.exists():
        raise MisuseError(f"there is no registry at {args.path}")
    buyer = None if args.buyer is None else check_buyer(args.buyer)
    ueid = None if args.ueid is None else args.ueid.lower()
    if ueid is not None and _UEID.fullmatch(ueid) is None:
        raise MisuseError("--ueid is 1 to 66 hexadecimal digits")
    with Registry(args.path, read_only=True) as registry:
        rows = [asdict(row) for row in registry.rows(buyer=buyer, ueid=ueid)]
    columns = ("made", "release", "buyer", "ueid", "epoch", "security_counter", "sequence", "file")
    shown = [[_cell(c, row[c]) for c in columns] for row in rows[-_LIST_LIMIT:]]
    emit(rows, args.json, lambda: table(shown, columns) if rows else "no copies")
    if len(rows) > _LIST_LIMIT and not args.json:
        note(f"the last {_LIST_LIMIT} of {len(rows)}; --json prints all")
    return 0


def _cell(column: str, value: str | int) -> str | int:
    """A value as a table shows it."""
    if column == "ueid":
        return str(value)[:18]
    if column == "buyer" and len(str(value)) > _SHOWN:
        return f"{str(value)[: _SHOWN - 3]}..."
    return value


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MisuseError(f"cannot read {path}: no such file or directory")
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MisuseError(f"cannot read {path}: {(error.strerror or '').lower()}") from error


def _class_names(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        names = tuple(_read(path).decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise MisuseError(f"{path} is not UTF-8 text") from error
    if not all(name and name.isprintable() for name in names) or len(set(names)) != len(names) or not names:
        raise MisuseError(f"{path}: class names must be different and printable, one on each line")
    return names
