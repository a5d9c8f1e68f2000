"""The options of the commands of `variegate broker`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from variegate.cli.console import add_json_option, add_passphrase_option
from variegate.cli.options import command, moment, whole
from variegate.keys.primitives import KEM_HYBRID, KEM_NAMES

_MAX_LINE = (1 << 63) - 1
"""SQLite's largest."""


def new(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker new`."""
    p = _command(commands, "new", "make a broker: a key and empty books", "variegate broker new broker --root s.root")
    p.add_argument("--root", type=Path, required=True, metavar="FILE", help="root of the seller whose copies it serves")
    p.add_argument("--kem", choices=KEM_NAMES, default=KEM_HYBRID, help="key agreement (default: %(default)s)")
    add_passphrase_option(p)
    return p


def policy(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker policy`."""
    example = "variegate broker policy broker token.eat --device camera7.json"
    p = _command(
        commands, "policy", "write a good device's measurements into policy.toml, as reference values", example
    )
    p.add_argument("token", type=Path, metavar="TOKEN", help="evidence of a device that you know to be good")
    p.add_argument("--device", type=Path, required=True, metavar="JSON", help="its public identity")
    p.add_argument("--add", action="store_true", help="add its measurements to those in policy.toml")
    return p


def allow(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker allow`."""
    example = "variegate broker allow broker --buyer acme --device camera7.json"
    p = _command(commands, "allow", "let a buyer open copies on a device; enrols the device", example)
    p.add_argument("--buyer", required=True, help="buyer id, as in manifests")
    p.add_argument(
        "--device", type=Path, required=True, metavar="JSON", help="public identity; compare its fingerprint first"
    )
    p.add_argument("--until", type=moment, metavar="TIME", help="end, ISO 8601 with time zone (default: none)")
    return p


def deny(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker deny`."""
    p = _command(commands, "deny", "withdraw authorisations", "variegate broker deny broker --buyer acme")
    p.add_argument("--buyer", required=True, help="buyer id")
    p.add_argument("--ueid", metavar="HEX", help="only on this device (default: on all)")
    return p


def revoked(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker revoked`."""
    p = _command(commands, "revoked", "accept a signed list of revoked devices", "variegate broker revoked broker r")
    p.add_argument("list", type=Path, metavar="LIST", help="as `variegate keys revoke` writes it")
    return p


def follow(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker follow`."""
    line = "accept the seller's next root; copies under the old one stay valid on devices that have opened them"
    p = _command(commands, "follow", line, "variegate broker follow broker to2.root")
    p.add_argument(
        "statement", type=Path, help="statement of `variegate keys rotate`; accept it before devices follow it"
    )
    return p


def listing(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker list`."""
    p = _command(commands, "list", "list the authorisations", "variegate broker list broker --json")
    add_json_option(p)
    return p


def log(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker log`."""
    p = _command(
        commands, "log", "list releases and refusals, with the reasons", "variegate broker log broker --after 100"
    )
    p.add_argument(
        "--after",
        type=whole(0, _MAX_LINE, "the number of a line"),
        default=0,
        metavar="NUMBER",
        help="only later lines",
    )
    add_json_option(p)
    return p


def challenge(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker challenge`."""
    p = _command(commands, "challenge", "make a nonce for a request for evidence", "variegate broker challenge broker")
    add_json_option(p)
    return p


def appraise(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker appraise`."""
    p = _command(
        commands,
        "appraise",
        "compare evidence with policy.toml, and name each failed check; uses up its nonce",
        "variegate broker appraise broker token.eat",
    )
    p.add_argument("token", type=Path, metavar="TOKEN", help="the device's evidence for a nonce of `challenge`")
    add_json_option(p)
    return p


def serve(commands: Any) -> argparse.ArgumentParser:
    """Options of `broker serve`."""
    p = _command(commands, "serve", "serve devices over HTTP", "variegate broker serve broker --port 8443")
    p.add_argument("--host", default="127.0.0.1", help="address or name to listen on, accepted as Host (%(default)s)")
    p.add_argument("--port", type=int, default=8443, help="0 takes any free one (%(default)s)")
    p.add_argument("--certificate", type=Path, metavar="PEM", help="serve HTTPS with this certificate")
    p.add_argument("--key", type=Path, metavar="PEM", help="its key")
    p.add_argument("--client-ca", type=Path, metavar="PEM", help="accept only clients with a certificate of this CA")
    add_passphrase_option(p)
    return p


def _command(commands: Any, name: str, line: str, example: str) -> argparse.ArgumentParser:
    parser = command(commands, name, line, example)
    parser.add_argument("folder", type=Path, metavar="BROKER", help="the broker's folder")
    return parser
