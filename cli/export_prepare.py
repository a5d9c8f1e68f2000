"""`variegate export prepare`: a release from a base model."""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import asdict
from pathlib import Path

from variegate.cli.console import Progress, emit, note, read_file, table
from variegate.export.arrays import read_arrays
from variegate.export.calibrate import Tried, candidates
from variegate.export.intake.base import Base
from variegate.export.intake.contract import Contract, InputSpec
from variegate.export.preparation import Validation, base_of, prepare
from variegate.export.release import Release, check_name, check_new
from variegate.export.rewriters import Qim, Rewriter, from_parameters, to_parameters
from variegate.keys.errors import MisuseError

_RANK = 4


def run(args: argparse.Namespace) -> int:
    """Makes and writes the release."""
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
    validation = None if args.validation is None else _validation(args)
    base = _load_base(args, spec)
    note(f"base: {base.contract.classes} classes, {base.contract.image_shape}, sha256 {base.digest.hex()[:16]}")
    rewriter: str | Rewriter = args.rewriter
    if args.parameters is not None:
        rewriter = _read_parameters(args.parameters, args.rewriter, base.contract)
    elif validation is None:
        note("no --validation: default parameters; their cost in accuracy is not known")
    with Progress("rewriters tried") as line:

        def tried(candidate: Tried) -> None:
            line.advance()
            _show_tried(candidate)

        note("looking for the strongest rewriter" if validation and args.parameters is None else "fusing and checking")
        release = prepare(
            base,
            validation=validation,
            loss=args.loss,
            name=name,
            dtype=args.dtype,
            rewriter=rewriter,
            progress=tried,
        )
    release.save(args.out)
    calibration = release.calibration
    data = {
        "release": name,
        "rewriter": to_parameters(release.template.rewriter),
        "parity": None if release.report is None else asdict(release.report),
        "calibration": None if calibration is None else asdict(calibration.tried[-1]),
    }
    emit(data, args.json, lambda: _prepared(args.out, release))
    return 0


def _prepared(out: Path, release: Release) -> str:
    rewriter, calibration = release.template.rewriter, release.calibration
    rows = [("release", str(out)), ("rewriter", json.dumps(to_parameters(rewriter)))]
    if isinstance(rewriter, Qim):
        steps = ", ".join(f"{step:.3g}" for step in rewriter.real_steps(release.template.contract))
        rows.append(("attractors", f"B = {rewriter.messages} messages for each class, d = {steps}"))
        if calibration is not None:
            rows.append(("noise", f"8 grey levels change {100 * calibration.turned:.1f} % of the base's labels"))
    if calibration is not None:
        last = calibration.tried[-1]
        rows.append(("accuracy", f"{100 * last.accuracy:.2f} % over {calibration.copies} copies"))
        rows.append(("base", f"{100 * calibration.base_accuracy:.2f} % on the same {calibration.images} images"))
    rows.append(("parity", f"labels equal on {len(release.parity.images)} images"))
    return table(rows)


def _show_tried(tried: Tried) -> None:
    note(f"tried {json.dumps(tried.parameters)}: costs {tried.loss_points:.2f} points (+- {tried.error_points:.2f})")


def _load_base(args: argparse.Namespace, spec: InputSpec) -> Base:
    if ":" not in args.base:
        if args.weights or args.shape:
            raise MisuseError("--weights and --shape belong to a torch module")
        return base_of(_existing(Path(args.base)), spec=spec)
    from variegate.export.intake import weights  # noqa: PLC0415  torch

    if args.shape is None or len(args.shape) != _RANK - 1:
        raise MisuseError("a torch module needs --shape, as in 3,32,32")
    module = weights.module_from_spec(args.base)
    if args.weights is not None:
        weights.load_weights(module, _existing(args.weights))
    return base_of(module, args.shape, spec)


def _validation(args: argparse.Namespace) -> Validation:
    images, truth = read_arrays(args.validation, ("x", "y"))
    if str(images.dtype) != args.dtype:
        raise MisuseError(f"validation images are {images.dtype}, devices will pass {args.dtype}", hint="see --dtype")
    return images, truth


def _read_parameters(path: Path, kind: str, contract: Contract) -> Rewriter:
    """Parameters from a file; those it leaves out are the first candidate's, which fits the image size."""
    try:
        table_ = tomllib.loads(read_file(path).decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MisuseError(f"{path} cannot be read as TOML: {error}") from error
    if table_.pop("schema", None) != 1:
        raise MisuseError(f"{path}: schema is missing or not 1")
    first = next(candidates(str(table_.get("kind", kind)), contract))
    return from_parameters({**to_parameters(first), **table_})


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MisuseError(f"cannot read {path}: no such file or directory")
    return path


def _class_names(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        names = tuple(read_file(path).decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise MisuseError(f"{path} is not UTF-8 text") from error
    if not all(name and name.isprintable() for name in names) or len(set(names)) != len(names) or not names:
        raise MisuseError(f"{path}: class names must be different and printable, one on each line")
    return names
