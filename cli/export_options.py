"""The options of the commands of `variegate export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from variegate.cli.console import add_json_option, add_passphrase_option
from variegate.cli.options import command, moment


def prepare(commands: Any) -> argparse.ArgumentParser:
    """Options of `export prepare`."""
    p = command(
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
    p.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW", help="axes of the base's input (%(default)s)")
    p.add_argument(
        "--value-range", choices=("unit", "byte"), default="unit", help="range of pixels that the base expects"
    )
    p.add_argument(
        "--mean", type=_floats, default=(), metavar="R,G,B", help="mean of each channel, which is subtracted"
    )
    p.add_argument(
        "--std", type=_floats, default=(), metavar="R,G,B", help="deviation of each channel, which is divided by"
    )
    p.add_argument(
        "--outputs",
        choices=("auto", "logits", "probabilities"),
        default="auto",
        help="kind of the base's scores (%(default)s: read from the graph)",
    )
    p.add_argument("--class-names", type=Path, metavar="FILE", help="one name a line, UTF-8")
    p.add_argument("--dtype", choices=("uint8", "float32"), default="uint8", help="type of the devices' frames")
    kinds = ("permutation", "qim", "spread")  # without the module that has them, which loads onnx
    p.add_argument("--rewriter", choices=kinds, default="qim", help="rewriter that makes copies differ (%(default)s)")
    p.add_argument(
        "--validation", type=Path, metavar="NPZ", help="arrays x (N, C, H, W) and y (classes), unseen by the base"
    )
    p.add_argument(
        "--loss", type=float, default=0.5, metavar="POINTS", help="largest mean loss of accuracy (%(default)s)"
    )
    p.add_argument(
        "--parameters",
        type=Path,
        metavar="TOML",
        help="rewriter parameters, instead of calibration; missing ones are those of its first candidate",
    )
    p.add_argument("--name", help="name of the release (default: the folder's)")
    p.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder for the release; must not hold one yet"
    )
    add_json_option(p)
    return p


def copy(commands: Any) -> argparse.ArgumentParser:
    """Options of `export copy`."""
    p = command(
        commands,
        "copy",
        "seal a copy for one buyer and device",
        "variegate export copy release/ --seller seller.key --buyer acme --device camera7.json --out copies/",
    )
    _add_sealing(p)
    p.add_argument("--buyer", required=True, help="buyer id, 1 to 128 printable characters")
    p.add_argument("--device", type=Path, required=True, metavar="JSON", help="the device's public identity")
    p.add_argument("--epoch", type=int, default=0, help="the buyer's key epoch (%(default)s)")
    p.add_argument(
        "--security-counter",
        type=int,
        metavar="N",
        help="rollback counter: a device that has confirmed this copy refuses copies with a lower one (default: the "
        "time in microseconds, or one above all that the registry has for the device, whichever is higher)",
    )
    return p


def fleet(commands: Any) -> argparse.ArgumentParser:
    """Options of `export fleet`."""
    p = command(
        commands,
        "fleet",
        "seal a copy for every line of a CSV; run it again to continue after a stop",
        "variegate export fleet release/ --seller seller.key --list fleet.csv --out copies/ --jobs 2",
    )
    _add_sealing(p)
    p.add_argument(
        "--list",
        type=Path,
        required=True,
        metavar="CSV",
        help="columns buyer, device[, epoch, security_counter]; "
        "without a security counter a copy gets one above all that the registry has for its device",
    )
    p.add_argument(
        "--cohort",
        help="share one component under this name and write envelopes; whoever breaks one device of a cohort "
        "can read the component of all (default: a component for each copy)",
    )
    p.add_argument("--jobs", type=int, default=1, help="worker processes (%(default)s)")
    return p


def _add_sealing(p: argparse.ArgumentParser) -> None:
    p.add_argument("release", type=Path, metavar="RELEASE", help="folder made by: variegate export prepare")
    p.add_argument("--seller", required=True, metavar="KEY", help="the seller's key file, or a pkcs11: URI")
    p.add_argument(
        "--signer", metavar="URI", help="key of the signer, as in file:next.key (default: the seller's own keys)"
    )
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the copies; made when missing")
    p.add_argument(
        "--registry", type=Path, metavar="FILE", help="SQLite registry (default: registry.sqlite beside RELEASE)"
    )
    p.add_argument(
        "--revoked",
        type=Path,
        metavar="FILE",
        help="signed list of devices that get no copy; refused when it is older than the newest that the registry has "
        "seen; a new registry has seen none",
    )
    p.add_argument(
        "--broker", type=Path, metavar="FILE", help="broker.pub of a key broker, without which no copy opens"
    )
    p.add_argument("--vendor", default="seller", help="name of the seller in the manifest")
    p.add_argument("--budget", type=int, help="labels that a device may answer in this epoch (default: no bound)")
    p.add_argument("--rate-per-hour", type=int, help="labels per hour in the long run (default: no bound)")
    p.add_argument("--burst", type=int, default=1, help="labels at once, where there is a rate (%(default)s)")
    p.add_argument(
        "--allow-downgrade",
        action="store_true",
        help="let a device go back to these copies from later ones of the same security counter; without it it accepts "
        "higher sequence numbers only. No option allows a lower security counter",
    )
    p.add_argument("--not-after", type=moment, metavar="TIME", help="expiry, ISO 8601 with time zone")
    p.add_argument(
        "--grace",
        type=int,
        default=0,
        metavar="SECONDS",
        help="time that a copy still works after its expiry (%(default)s)",
    )
    add_passphrase_option(p)
    add_json_option(p)


def registry(commands: Any) -> argparse.ArgumentParser:
    """Options of `export registry`."""
    p = command(
        commands,
        "registry",
        "list copies and their buyers",
        "variegate export registry registry.sqlite --buyer acme --json",
    )
    p.add_argument("path", type=Path, metavar="FILE", help="the SQLite registry")
    p.add_argument("--buyer", help="only this buyer's copies")
    p.add_argument(
        "--ueid", metavar="HEX", help="only copies for this device, or for those whose ueid begins with this"
    )
    add_json_option(p)
    return p


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError("give whole numbers, as in 3,32,32") from None


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError("give numbers, as in 0.5,0.5,0.5") from None
