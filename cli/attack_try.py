"""`variegate attack try`: one attack on one device, for a person who wants to see it."""

from __future__ import annotations

import argparse
import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.adaptive.collusion import Colluders
from variegate.attack.adaptive.partner import PartnerSearch
from variegate.attack.algorithms.table import CORRECTED
from variegate.attack.campaign.data import MAX_BYTES, read_npz
from variegate.attack.kinds import KINDS, NAMES, from_config
from variegate.attack.oracles import Patience, open_oracle
from variegate.attack.oracles.address import FORMS
from variegate.attack.oracles.frames import MAX_CLASSES
from variegate.attack.oracles.http_line import Trust
from variegate.attack.oracles.vehicle import VehicleOracle
from variegate.attack.trial import Trial, fitting
from variegate.cli.attack_options import MOST
from variegate.cli.console import Progress, add_json_option, emit, note, table
from variegate.cli.interrupts import Interruptible
from variegate.cli.options import command, whole
from variegate.keys.errors import MisuseError, Refusal, RefusedError, VariegateError
from variegate.keys.files import check_new, read_capped, write_atomic

_EXAMPLE = (
    "variegate attack try http://127.0.0.1:8000 --images val.npz --count 5\n"
    "  variegate attack try device:camera7 --images val.npz --attack rays --queries 1000 --out samples.npz\n"
    "  variegate attack try device:mine device:friend --images val.npz --attack colluders\n"
    "  variegate attack try 'vehicle:camera7?camera=driving&fps=20' --images val.npz --attack surfree"
)
_HEADER = ("image", "true", "label", "found", "distance", "queries", "note")
_MISREAD = "misread when clean"
_LEAST, _RANK, _MODE = 2, 4, 0o644
_INTERRUPTED, _STATUS_INTERRUPTED = "interrupted", 130


def add_command(commands: Any) -> None:
    """Adds `try` to the group's commands."""
    line = "attack one device by its labels, and show the result"
    p = command(commands, "try", line, _EXAMPLE)
    p.add_argument("devices", metavar="DEVICE", nargs="+", help=f"{FORMS}; several for --attack colluders or partner")
    p.add_argument(
        "--images", type=Path, required=True, metavar="NPZ", help="array x (N, C, H, W), and y (classes) if known"
    )
    p.add_argument("--attack", choices=NAMES, default="hopskipjump", help="(default: %(default)s)")
    p.add_argument("--profile", default=CORRECTED, help=f"{_profiles()} (default: %(default)s)")
    p.add_argument(
        "--queries", type=whole(0, MOST), default=2000, metavar="N", help="labels for each image (default: 2000)"
    )
    p.add_argument(
        "--count", type=whole(0, MOST), default=10, metavar="N", help="images, from the start of the file (default: 10)"
    )
    p.add_argument(
        "--seed", type=whole(0, MOST), default=0, metavar="N", help="seed of all random numbers (default: 0)"
    )
    p.add_argument(
        "--wait", type=float, default=60.0, metavar="S", help="longest wait for a rate, in seconds (default: 60)"
    )
    p.add_argument("--out", type=Path, metavar="NPZ", help="write the samples, also of a trial that is stopped")
    add_json_option(p)
    tls = p.add_argument_group("TLS")
    tls.add_argument("--ca", type=Path, metavar="PEM", help="CA of the device's certificate (default: the system's)")
    tls.add_argument("--cert", type=Path, metavar="PEM", help="client certificate, if one is required")
    tls.add_argument("--key", type=Path, metavar="PEM", help="its key")
    p.set_defaults(run=_try)


def _profiles() -> str:
    """Profiles and the attacks that have them."""
    of: dict[str, list[str]] = {}
    for kind, profile in sorted(KINDS):
        of.setdefault(profile, []).append(kind)
    words = (
        f"{name} ({'every attack' if len(kinds) == len(NAMES) else ', '.join(kinds)})" for name, kinds in of.items()
    )
    return " or ".join(words)


def _try(args: argparse.Namespace) -> int:
    if args.queries < _LEAST or args.count < 1:
        raise MisuseError("an attack needs at least 2 queries and 1 image")
    if args.out is not None:
        check_new(args.out)  # before queries are spent
    attack = from_config(args.attack, args.profile, {})
    if len(args.devices) > 1 and isinstance(attack, Colluders | PartnerSearch):
        attack = replace(attack, devices=len(args.devices))
    every, true = _images(args.images, args.count)
    trust = Trust(ca=args.ca, certificate=args.cert, key=args.key) if args.ca or args.cert or args.key else None
    patience = Patience(longest_s=args.wait, waiting=lambda wait: note(f"the device asks to wait {wait:.1f} s"))
    with ExitStack() as stack:
        own = [stack.enter_context(open_oracle(uri, patience=patience, trust=trust)) for uri in args.devices]
        pictures = fitting(every, true, own[0])
        frames = pictures[: args.count]
        interruptible = Interruptible(own)
        trial = Trial(
            interruptible.devices, attack, frames, true, queries=args.queries, seed=args.seed, pictures=pictures
        )
        try:
            with Progress("queries", len(frames) * args.queries * len(own)) as line, interruptible:
                trial.run(line.advance)
        except VariegateError as error:
            _keep_stopped(args, trial, error.message)
            raise
        except KeyboardInterrupt:
            note("")  # behind the terminal's ^C
            _keep_stopped(args, trial, _INTERRUPTED)
            note(f"variegate: {_INTERRUPTED}")
            return _STATUS_INTERRUPTED
        first = own[0]
        beside = first.seconds_beside(trial.queries // len(own)) if isinstance(first, VehicleOracle) else None
    _keep(args, trial)
    if beside is not None:
        note(f"{trial.queries} queries take {beside / 3600:.1f} hours beside the car, at its frame rate")
    return 0


def _keep_stopped(args: argparse.Namespace, trial: Trial, error: str) -> None:
    if trial.outcomes:
        note(table(_rows(trial), _HEADER))
        note(f"{len(trial.outcomes)} of {len(trial.frames)} images were begun, for {trial.queries} queries")
    _keep(args, trial, error)


def _keep(args: argparse.Namespace, trial: Trial, error: str | None = None) -> None:
    """Writes and prints the results so far; they are printed even if they cannot be written."""
    try:
        if args.out is not None and (error is None or trial.outcomes):
            write_atomic(args.out, trial.archive(), mode=_MODE)
            if error is not None:
                note(f"wrote the results so far to {args.out}")
    finally:
        if args.json or error is None:
            emit(_summary(args, trial, error), args.json, lambda: text_of(trial))


def _images(path: Path, count: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """The images of a file, and the classes of the first if it has them."""
    data = read_capped(path, limit=MAX_BYTES)
    images = read_npz(data, ("x",), str(path))["x"]
    if images.ndim != _RANK or not images.size or images.dtype not in (np.uint8, np.float32):
        words = "holds no images" if images.ndim == _RANK and not images.size else "is not of shape (N, C, H, W)"
        words = words if images.dtype in (np.uint8, np.float32) else "is neither uint8 nor float32"
        raise RefusedError(Refusal.MALFORMED, f"x of {path} {words}")
    if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
        raise RefusedError(Refusal.MALFORMED, f"x of {path} holds values outside of [0, 1]")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if "y.npy" not in archive.namelist():
            return images, None
    true = read_npz(data, ("y",), str(path))["y"]
    if true.shape != (len(images),) or not np.issubdtype(true.dtype, np.integer):
        raise RefusedError(Refusal.MALFORMED, f"y of {path} does not have one class for each image")
    if true.min() < 0 or true.max() >= MAX_CLASSES:
        raise RefusedError(Refusal.MALFORMED, f"y of {path} holds values that are not classes")
    return images, true[:count].astype(np.int64)


def _summary(args: argparse.Namespace, trial: Trial, error: str | None) -> dict[str, object]:
    return {
        "device": args.devices[0],
        "devices": args.devices,
        "attack": args.attack,
        "profile": args.profile,
        "norm": trial.attack.norm,
        "queries": trial.queries,
        "median_distance": _median(trial),
        "error": error,
        "budget_spent": trial.spent,
        "images": [
            {
                "image": key,
                "true_class": None if trial.true is None else int(trial.true[key]),
                "clean_label": int(trial.labels[key]),
                "misread": None if trial.true is None else trial.misread(key),
                "status": one.status.value,
                "reason": one.reason,
                "label": one.label,
                "distance": one.distance if one.sample is not None else None,
                "queries": one.queries + 1,
            }
            for key, one in sorted(trial.outcomes.items())
        ],
    }


def text_of(trial: Trial) -> str:
    """A table of images, and a line with the result."""
    hits = sum(one.sample is not None for one in trial.judged)
    median = _median(trial)
    end = "" if median is None else f"; median {trial.attack.norm} distance {median:.4f}"
    cut = "".join(f"; {words}" for words in _cut_short(trial))
    misread = sum(map(trial.misread, range(len(trial.frames))))
    apart = f"; {misread} more are misread when clean, and not counted" if misread else ""
    counted = len(trial.frames) - misread
    last = f"{hits} of {counted} images fool the device, for {trial.queries} queries{end}{apart}{cut}"
    return f"{table(_rows(trial), _HEADER)}\n{last}"


def _rows(trial: Trial) -> list[tuple[object, ...]]:
    """A row for each image that is done."""
    return [
        (
            key,
            "" if trial.true is None else int(trial.true[key]),
            int(trial.labels[key]),
            one.status.value if one.label is None else one.label,
            "" if one.sample is None else f"{one.distance:.4f}",
            one.queries + 1,
            _MISREAD if trial.misread(key) else "",
        )
        for key, one in sorted(trial.outcomes.items())
    ]


def _cut_short(trial: Trial) -> Iterator[str]:
    """The work that the device's budget prevented."""
    if trial.spent:
        yield "the device's budget ended the trial early"
    alone = sum(one.sample is not None and one.label is None for one in trial.judged)
    if alone:
        yield f"{alone} of them could not be asked again alone"
    left = len(trial.frames) - len(trial.outcomes)
    if left:
        yield f"{left} not begun"


def _median(trial: Trial) -> float | None:
    """Of samples that fool the device, from images that it reads rightly."""
    lengths = [one.distance for one in trial.judged if one.sample is not None]
    return float(np.median(lengths)) if lengths and all(map(math.isfinite, lengths)) else None
