"""`variegate export`: a release from a base model, and sealed copies for buyers."""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.cli.console import (
    Progress,
    add_json_option,
    add_passphrase_option,
    emit,
    note,
    passphrase_reader,
    table,
)
from variegate.export import base as bases
from variegate.export import weights
from variegate.export.arrays import read_arrays
from variegate.export.calibrate import Calibration, Tried, calibrate
from variegate.export.contract import InputSpec
from variegate.export.fleet import COMPONENT_FILE, Exporter, FleetReport
from variegate.export.fleet_list import Wanted, check_buyer, read_list
from variegate.export.registry import Registry
from variegate.export.release import make_release, measure
from variegate.export.rewriters import KINDS, Rewriter, from_parameters, to_parameters
from variegate.export.sealing import Terms
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import Policy
from variegate.keys.rotation import Revocations
from variegate.keys.seller import Seller
from variegate.keys.uri import open_signer

_RANK = 4
_LIST_LIMIT = 64


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the group's commands."""
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_prepare(commands)
    _add_copy(commands)
    _add_fleet(commands)
    _add_registry(commands)


def _add_prepare(commands: Any) -> None:
    p = _command(
        commands,
        "prepare",
        "check a base, choose a rewriter and make a release",
        "variegate export prepare model.onnx --validation val.npz --loss 0.5 --out release/",
    )
    p.add_argument(
        "base",
        help="an .onnx or .pt2 file, or package.module:factory for a torch module (then --weights and --shape)",
    )
    p.add_argument("--weights", type=Path, help="safetensors file with the torch module's weights")
    p.add_argument("--shape", type=_numbers, metavar="C,H,W", help="shape of one image, for a torch module")
    p.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW")
    p.add_argument("--value-range", choices=("unit", "byte"), default="unit", help="pixels as the base wants them")
    p.add_argument("--mean", type=_floats, default=(), metavar="R,G,B", help="mean that the base wants subtracted")
    p.add_argument("--std", type=_floats, default=(), metavar="R,G,B", help="deviation that it wants divided by")
    p.add_argument("--outputs", choices=("auto", "logits", "probabilities"), default="auto")
    p.add_argument("--class-names", type=Path, metavar="FILE", help="one name a line")
    p.add_argument("--dtype", choices=("uint8", "float32"), default="uint8", help="frames that devices will pass")
    p.add_argument("--rewriter", choices=sorted(KINDS), default="qim")
    p.add_argument(
        "--validation", type=Path, metavar="NPZ", help="arrays x (images) and y (classes), unseen by the base"
    )
    p.add_argument(
        "--loss", type=float, default=0.5, metavar="POINTS", help="accuracy that a copy may cost (%(default)s)"
    )
    p.add_argument("--parameters", type=Path, metavar="TOML", help="rewriter parameters, instead of calibration")
    p.add_argument("--name", help="name of the release (default: the folder's)")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    add_json_option(p)
    p.set_defaults(run=_prepare)


def _add_copy(commands: Any) -> None:
    p = _command(
        commands,
        "copy",
        "seal a copy for one buyer and device",
        "variegate export copy release/ --seller seller.key --buyer acme --device camera7.json --out copies/",
    )
    _add_sealing(p)
    p.add_argument("--buyer", required=True)
    p.add_argument("--device", type=Path, required=True, metavar="JSON", help="the device's public identity")
    p.add_argument("--epoch", type=int, default=0, help="the buyer's key epoch (%(default)s)")
    p.add_argument("--security-counter", type=int, default=0, help="rollback counter (%(default)s)")
    p.set_defaults(run=_copy)


def _add_fleet(commands: Any) -> None:
    p = _command(
        commands,
        "fleet",
        "seal copies for every line of a CSV; run again to go on where it stopped",
        "variegate export fleet release/ --seller seller.key --list fleet.csv --out copies/ --jobs 2",
    )
    _add_sealing(p)
    p.add_argument(
        "--list", type=Path, required=True, metavar="CSV", help="columns buyer, device[, epoch, security_counter]"
    )
    p.add_argument(
        "--cohort",
        help="share one component under this name and write envelopes; whoever breaks one device of a cohort "
        "can read the component of all (default: a component for each copy)",
    )
    p.add_argument("--jobs", type=int, default=1, help="worker processes (%(default)s)")
    p.set_defaults(run=_fleet)


def _add_sealing(p: argparse.ArgumentParser) -> None:
    p.add_argument("release", type=Path, metavar="RELEASE", help="folder made by: variegate export prepare")
    p.add_argument("--seller", type=Path, required=True, metavar="KEY", help="the seller's key file")
    p.add_argument("--signer", metavar="URI", help="who signs, as in file:next.key (default: the seller's key file)")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    p.add_argument(
        "--registry", type=Path, metavar="FILE", help="SQLite registry (default: registry.sqlite beside RELEASE)"
    )
    p.add_argument("--revoked", type=Path, metavar="FILE", help="signed list of devices that get nothing")
    p.add_argument("--vendor", default="seller", help="name of the seller in the manifest")
    p.add_argument("--budget", type=int, help="labels that a device may answer in this epoch (default: no bound)")
    p.add_argument("--rate-per-hour", type=int, help="labels per hour in the long run (default: no bound)")
    p.add_argument("--burst", type=int, default=1, help="labels at once under a rate (%(default)s)")
    p.add_argument("--not-after", type=_moment, metavar="TIME", help="expiry, ISO 8601 with time zone")
    p.add_argument("--grace", type=int, default=0, metavar="SECONDS", help="time past expiry (%(default)s)")
    add_passphrase_option(p)
    add_json_option(p)


def _add_registry(commands: Any) -> None:
    p = _command(commands, "registry", "who got what", "variegate export registry registry.sqlite --buyer acme --json")
    p.add_argument("path", type=Path)
    p.add_argument("--buyer")
    p.add_argument("--ueid", help="hexadecimal")
    add_json_option(p)
    p.set_defaults(run=_registry)


def _command(commands: Any, name: str, line: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=line,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _prepare(args: argparse.Namespace) -> int:
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
        rewriter = _read_parameters(args.parameters, args.rewriter)
    elif truth is None:
        rewriter = from_parameters({"kind": args.rewriter})
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
    name = args.name or args.out.resolve().name
    release, report = make_release(name, base, rewriter, images)
    release.save(args.out, calibration)
    data = {
        "release": name,
        "rewriter": to_parameters(rewriter),
        "parity": asdict(report),
        "calibration": None if calibration is None else asdict(calibration.tried[-1]),
    }
    emit(data, args.json, lambda: _prepared(args.out, rewriter, calibration, report.images))
    return 0


def _prepared(out: Path, rewriter: Rewriter, calibration: Calibration | None, images: int) -> str:
    rows = [("release", str(out)), ("rewriter", json.dumps(to_parameters(rewriter)))]
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
        return bases.load_base(Path(args.base), spec)
    if args.shape is None or len(args.shape) != _RANK - 1:
        raise MisuseError("a torch module needs --shape, as in 3,32,32")
    module = weights.module_from_spec(args.base)
    if args.weights is not None:
        weights.load_weights(module, args.weights)
    return bases.from_torch(module, args.shape, spec)


def _validation(args: argparse.Namespace, base: bases.Base) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Images as devices will pass them, and their classes when a set was given."""
    shape = base.contract.image_shape
    if args.validation is None:
        noise = np.random.default_rng(0).integers(0, 256, (256, *shape), dtype=np.uint8)
        return (noise if args.dtype == "uint8" else noise / np.float32(255)), None
    images, truth = read_arrays(args.validation, ("x", "y"))
    if images.shape[1:] != shape or truth.shape != images.shape[:1] or truth.dtype.kind not in "iu":
        raise MisuseError(f"validation images must be (N, {', '.join(map(str, shape))}) with N whole classes")
    if truth.min(initial=0) < 0 or truth.max(initial=0) >= base.contract.classes:
        raise MisuseError(f"validation classes must lie in 0..{base.contract.classes - 1}")
    if str(images.dtype) not in {"uint8", "float32"} or str(images.dtype) != args.dtype:
        raise MisuseError(f"validation images are {images.dtype}, devices will pass {args.dtype}", hint="see --dtype")
    return images, truth.astype(np.int64)


def _read_parameters(path: Path, kind: str) -> Rewriter:
    try:
        table_ = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MisuseError(f"{path} cannot be read as TOML: {error}") from error
    if table_.pop("schema", None) != 1:
        raise MisuseError(f"{path}: schema is missing or not 1")
    return from_parameters({"kind": kind, **table_})


def _copy(args: argparse.Namespace) -> int:
    if min(args.epoch, args.security_counter) < 0:
        raise MisuseError("epoch and security counter may not be negative")
    device = DevicePublic.from_json(_read(args.device))
    wanted = Wanted(
        buyer=check_buyer(args.buyer), device=device, epoch=args.epoch, security_counter=args.security_counter
    )
    return _export(args, [wanted], cohort=None, jobs=1)


def _fleet(args: argparse.Namespace) -> int:
    return _export(args, read_list(args.list), cohort=args.cohort, jobs=max(1, args.jobs))


def _export(args: argparse.Namespace, wanted: list[Wanted], *, cohort: str | None, jobs: int) -> int:
    terms = _terms(args)
    seller = Seller.load(args.seller, passphrase_reader(args.passphrase_file)())
    _refuse_revoked(args, seller, wanted)
    signer = open_signer(args.signer, passphrase_reader(args.passphrase_file)) if args.signer else None
    exporter = Exporter(args.release, seller, terms, args.out, cohort, signer)
    registry = args.registry or args.release.resolve().parent / "registry.sqlite"
    with Registry(registry) as entered, Progress("copies", len(wanted)) as progress:
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
    rows = [("made", str(report.made)), ("there already", str(report.skipped)), ("folder", str(report.folder))]
    if cohort is not None:
        rows.append(("component", str(report.folder / COMPONENT_FILE)))
    return table([*rows, ("registry", str(registry))])


def _terms(args: argparse.Namespace) -> Terms:
    for name in ("budget", "rate_per_hour", "burst"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise MisuseError(f"--{name.replace('_', '-')} must be at least 1")
    if args.grace < 0:
        raise MisuseError("--grace may not be negative")
    policy = Policy(budget=args.budget, rate_per_hour=args.rate_per_hour, burst=args.burst, grace_s=args.grace)
    return Terms(vendor=args.vendor, policy=policy, not_after=args.not_after)


def _refuse_revoked(args: argparse.Namespace, seller: Seller, wanted: list[Wanted]) -> None:
    if args.revoked is None:
        return
    revoked = Revocations.verify(_read(args.revoked), seller.root, 0)
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
    with Registry(args.path) as registry:
        rows = [asdict(row) for row in registry.rows(buyer=args.buyer, ueid=args.ueid)]
    columns = ("made", "release", "buyer", "ueid", "epoch", "sequence", "file")
    shown = [[row[c][:18] if c == "ueid" else row[c] for c in columns] for row in rows[-_LIST_LIMIT:]]
    emit(rows, args.json, lambda: table(shown, columns) if rows else "no copies")
    if len(rows) > _LIST_LIMIT and not args.json:
        note(f"the last {_LIST_LIMIT} of {len(rows)}; --json prints all")
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MisuseError(f"cannot read {path}: {(error.strerror or '').lower()}") from error


def _class_names(path: Path | None) -> tuple[str, ...]:
    return () if path is None else tuple(_read(path).decode("utf-8", "replace").splitlines())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _moment(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError("give a time zone, as in 2027-01-01T00:00:00+00:00")
    return int(moment.timestamp())
