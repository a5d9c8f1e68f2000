"""`variegate keys`: make, show, rotate and revoke keys."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable
from pathlib import Path

from variegate.cli.console import (
    Secrets,
    add_json_option,
    add_passphrase_option,
    check_key_file,
    emit,
    note,
    passphrase_reader,
    table,
)
from variegate.cli.options import command
from variegate.keys import cbor, keyfile
from variegate.keys.broker import BrokerKey
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import PUBLIC, read_capped, write_atomic
from variegate.keys.identity import DeviceIdentity, DevicePublic
from variegate.keys.primitives import KEM_HYBRID, KEM_NAMES
from variegate.keys.rotation_files import extend, rotate
from variegate.keys.seller import Seller
from variegate.keys.signing import MAX_STATEMENT_BYTES, SellerRoot
from variegate.keys.uri import file_path, is_hsm, new_seller

_LONG = ("mldsa65", "kem_public")
"""Public keys of a kilobyte and more: in JSON only."""
_SELLER = "the seller's key file, or a pkcs11: URI"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the group's commands."""
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_generate(commands)

    example = "variegate keys import seller.key --out 'pkcs11:token=seller;object=acme?module-path=/path.so'"
    bring = command(commands, "import", "store the keys of a key file in an HSM", example)
    bring.add_argument("path", type=Path, metavar="SELLER", help="the seller's key file; it stays as it is")
    bring.add_argument("--out", required=True, metavar="URI", help="pkcs11: URI; the object must not be there yet")
    add_passphrase_option(bring)
    bring.set_defaults(run=_import)

    show = command(
        commands, "show", "show the public parts and fingerprint of a key", "variegate keys show seller.key --json"
    )
    show.add_argument("path", help="key file, pkcs11: URI, device identity, seller root or revocation list")
    add_passphrase_option(show)
    add_json_option(show)
    show.set_defaults(run=_show)

    example = "variegate keys identity camera7.key --out camera7.json"
    identity = command(commands, "identity", "write a device's public identity", example)
    identity.add_argument("path", type=Path, help="the device's key file")
    _add_out(identity, "JSON file to write")
    add_passphrase_option(identity)
    identity.set_defaults(run=_identity)

    root = command(commands, "root", "write the root that devices pin", "variegate keys root seller.key --out s.root")
    root.add_argument("path", metavar="SELLER", help=_SELLER)
    _add_out(root, "file to write, 1,984 bytes")
    add_passphrase_option(root)
    root.set_defaults(run=_root)

    example = "variegate keys rotate seller.key --out seller2.key --statement to2.root --revoked revoked.list"
    line = "make new signing keys under the same master secret; after a stop the same command continues"
    turn = command(commands, "rotate", line, example)
    turn.add_argument("path", metavar="OLD", help=f"{_SELLER}, so far")
    _add_seller_out(turn, "key file to write, same passphrase")
    turn.add_argument("--statement", type=Path, required=True, help="file to write: the new root, signed by the old")
    turn.add_argument(
        "--revoked", type=Path, metavar="FILE", help="revocation list, to be signed again with the new keys"
    )
    add_passphrase_option(turn)
    turn.set_defaults(run=_rotate)

    example = "variegate keys revoke seller.key --revoked revoked.list --ueid 01ab..."
    revoke = command(commands, "revoke", "make or extend the signed list of revoked devices", example)
    revoke.add_argument("path", metavar="SELLER", help=_SELLER)
    revoke.add_argument("--revoked", type=Path, required=True, metavar="FILE", help="the list; extended if it exists")
    revoke.add_argument("--ueid", nargs="+", required=True, metavar="HEX", help="devices, 66 digits each")
    add_passphrase_option(revoke)
    revoke.set_defaults(run=_revoke)


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = command(commands, "generate", "make new keys", "variegate keys generate seller --out seller.key")
    kinds = generate.add_subparsers(metavar="KIND", required=True)
    seller = command(kinds, "seller", "master secret and signing keys", "variegate keys generate seller --out s.key")
    _add_seller_out(seller, "key file to write")
    add_passphrase_option(seller)
    seller.set_defaults(run=_generate_seller)
    example = "variegate keys generate device --out camera7.key --class camera-v1"
    device = command(kinds, "device", "identity of one device", example)
    _add_out(device, "key file to write")
    device.add_argument("--class", required=True, dest="device_class", help="kind of device")
    device.add_argument("--kem", choices=KEM_NAMES, default=KEM_HYBRID, help="key agreement (default: %(default)s)")
    add_passphrase_option(device)
    device.set_defaults(run=_generate_device)


def _generate_seller(args: argparse.Namespace) -> int:
    seller = new_seller(args.out, Secrets(args.passphrase_file, create=True).of(args.out)).seller
    note(f"wrote {args.out}; root {seller.root.fingerprint.hex()}")
    if is_hsm(args.out):
        note("these keys are in this HSM only: without it or its backup no buyer's copy can be made or traced again")
    else:
        note("keep a copy in a safe place: without it no buyer's copy can be made or traced again")
    return 0


def _import(args: argparse.Namespace) -> int:
    if not is_hsm(args.out):
        raise MisuseError("keys are imported into an HSM", hint="give --out a pkcs11: URI; a key file is just copied")
    secrets = Secrets(args.passphrase_file)
    given = Seller.load(check_key_file(args.path), secrets.of(str(args.path))())
    seller = new_seller(args.out, secrets.of(args.out), given=given).seller
    note(f"wrote {args.out}; root {seller.root.fingerprint.hex()}")
    note(f"keep {args.path} offline, as the backup, or destroy it: whoever has it and its passphrase has the keys")
    return 0


def _generate_device(args: argparse.Namespace) -> int:
    identity = DeviceIdentity.generate(args.device_class, args.kem)
    identity.save(args.out, _passphrase(args, create=True)())
    note(f"wrote {args.out}; device {identity.public.ueid.hex()}")
    return 0


def _show(args: argparse.Namespace) -> int:
    facts = _hsm_facts(args) if is_hsm(args.path) else _facts(_plain(args.path), _passphrase(args))
    rows = [
        (f"{name.replace('_', ' ')}:", str(line))
        for name, value in facts.items()
        if name not in _LONG
        for line in (value if isinstance(value, list) else [value])
    ]
    emit(facts, args.json, lambda: table(rows))
    return 0


def _identity(args: argparse.Namespace) -> int:
    public = DeviceIdentity.load(check_key_file(args.path), _passphrase(args)()).public
    write_atomic(args.out, public.to_json().encode(), mode=PUBLIC)
    note(f"wrote {args.out}; fingerprint {public.fingerprint.hex()}")
    return 0


def _root(args: argparse.Namespace) -> int:
    root = Secrets(args.passphrase_file).seller(args.path).root
    write_atomic(args.out, root.to_bytes(), mode=PUBLIC)
    note(f"wrote {args.out}; root {root.fingerprint.hex()}")
    return 0


def _rotate(args: argparse.Namespace) -> int:
    secrets = Secrets(args.passphrase_file)
    old = secrets.seller(args.path)
    new, resumed = rotate(old, args.out, secrets.of(args.out), statement=args.statement, revoked=args.revoked)
    if resumed:
        note(f"{args.out} was there already, with the next keys: continued from there")
    note(f"wrote {args.out} and {args.statement}; new root {new.root.fingerprint.hex()}")
    note(f"keep {args.path} until every device and broker has followed")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    ueids = [_ueid(text) for text in args.ueid]
    revoked = extend(args.revoked, Secrets(args.passphrase_file).seller(args.path), ueids)
    note(f"wrote {args.revoked}; serial {revoked.serial}, {len(revoked.ueids)} devices")
    return 0


def _hsm_facts(args: argparse.Namespace) -> dict[str, object]:
    seller = Secrets(args.passphrase_file).seller(args.path)
    held = ["master secret and Ed25519: used in the HSM", "ML-DSA-65: encrypted by the HSM, used in software"]
    return {**_root_facts(seller.root), "kind": "seller key in an HSM", "serial": seller.serial, "protection": held}


def _plain(path: str) -> Path:
    """A path, also when it is written as a `file:` URI."""
    return file_path(path) if path.lower().startswith("file:") else Path(path)


def _facts(path: Path, passphrase: Callable[[], str]) -> dict[str, object]:
    """The public parts of a key file, a public identity or a root."""
    head = read_capped(path, limit=max(keyfile.MAX_KEY_FILE_BYTES, MAX_STATEMENT_BYTES))
    if head.startswith(keyfile.MAGIC):
        file = keyfile.read(path)
        secret = file.open(passphrase())
        if file.kind == keyfile.KIND_SELLER:
            seller = Seller.from_secret(secret)
            return {**_root_facts(seller.root), "kind": "seller key", "serial": seller.serial}
        if file.kind == keyfile.KIND_BROKER:
            broker = BrokerKey.from_secret(secret).public
            return {"kind": "broker key", "id": broker.id.hex(), "kem": broker.kem}
        return {**_device_facts(DeviceIdentity.from_bytes(secret).public), "kind": "device key"}
    if head.startswith(b"{"):
        return _device_facts(DevicePublic.from_json(head))
    try:
        return _revoked_facts(head) or _root_facts(SellerRoot.from_bytes(head))
    except RefusedError:
        message = f"{path} is not a key file, device identity, seller root or revocation list"
        raise RefusedError(Refusal.KEY, message) from None


def _root_facts(root: SellerRoot) -> dict[str, object]:
    return {
        "kind": "seller root",
        "fingerprint": root.fingerprint.hex(),
        "ed25519": root.ed25519.hex(),
        "mldsa65": base64.b64encode(root.mldsa65).decode(),
    }


def _revoked_facts(data: bytes) -> dict[str, object] | None:
    """The content of a revocation list; there is no root here to check its signatures."""
    try:
        match cbor.decode(data, limit=MAX_STATEMENT_BYTES):
            case [[bytes(), dict(), bytes(payload), bytes()], *_]:
                match cbor.decode(payload, limit=MAX_STATEMENT_BYTES):
                    case [1, int(serial), [*ueids]] if all(isinstance(ueid, bytes) for ueid in ueids):
                        return {
                            "kind": "revocation list",
                            "signature": "not checked",
                            "serial": serial,
                            "devices": len(ueids),
                            "ueid": [ueid.hex() for ueid in ueids],
                        }
    except RefusedError:
        pass
    return None


def _device_facts(public: DevicePublic) -> dict[str, object]:
    return {
        "kind": "device identity",
        "fingerprint": public.fingerprint.hex(),
        "ueid": public.ueid.hex(),
        "device_class": public.device_class,
        "ed25519": public.signing_public.hex(),
        "kem": public.kem,
        "kem_public": base64.b64encode(public.kem_public).decode(),
    }


def _ueid(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise MisuseError("a ueid is written in hexadecimal", hint="variegate keys show PATH prints it") from None


def _passphrase(args: argparse.Namespace, *, create: bool = False) -> Callable[[], str]:
    return passphrase_reader(args.passphrase_file, create=create)


def _add_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help=f"{what}; must not be there yet")


def _add_seller_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", required=True, metavar="PATH", help=f"{what}, or a pkcs11: URI; must not be there yet")
