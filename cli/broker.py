"""`variegate broker`: a key broker, its books, and a verifier for sellers.

A broker is a folder:  broker.key  broker.pub  seller.root  policy.toml  books.sqlite
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from variegate.attest import evidence as tokens
from variegate.attest.broker import Broker
from variegate.attest.broker_store import BrokerStore, LogEntry
from variegate.attest.evidence import MAX_EVIDENCE_BYTES
from variegate.attest.nonces import Nonces
from variegate.attest.policy import MAX_POLICY_BYTES, AppraisalPolicy
from variegate.attest.verifier import Verifier
from variegate.cli import broker_options
from variegate.cli.console import check_key_file, emit, note, passphrase_reader, table
from variegate.keys.broker import BrokerKey
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.fields import UEID_BYTES
from variegate.keys.files import PUBLIC, read_capped, refuse_shared, write_atomic
from variegate.keys.public_identity import MAX_PUBLIC_TEXT_BYTES, DevicePublic
from variegate.keys.signing import MAX_STATEMENT_BYTES, SellerRoot
from variegate.serve.binding import address_text

KEY, PUB, ROOT, POLICY, BOOKS = "broker.key", "broker.pub", "seller.root", "policy.toml", "books.sqlite"
_PAGE = 1000


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the group's commands."""
    commands = parser.add_subparsers(metavar="COMMAND")
    broker_options.new(commands).set_defaults(run=_new)
    broker_options.policy(commands).set_defaults(run=_policy)
    broker_options.allow(commands).set_defaults(run=_allow)
    broker_options.deny(commands).set_defaults(run=_deny)
    broker_options.revoked(commands).set_defaults(run=_revoked)
    broker_options.follow(commands).set_defaults(run=_follow)
    broker_options.listing(commands).set_defaults(run=_list)
    broker_options.log(commands).set_defaults(run=_log)
    broker_options.challenge(commands).set_defaults(run=_challenge)
    broker_options.appraise(commands).set_defaults(run=_appraise)
    broker_options.serve(commands).set_defaults(run=_serve)


def _new(args: argparse.Namespace) -> int:
    folder: Path = args.folder
    refuse_shared(folder.absolute().parent)
    root = SellerRoot.from_bytes(read_capped(args.root, limit=MAX_STATEMENT_BYTES))
    passphrase = passphrase_reader(args.passphrase_file, create=True)()
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise MisuseError(f"cannot make {folder}: {(error.strerror or '').lower()}") from error
    try:
        key = BrokerKey.generate(args.kem)
        key.save(folder / KEY, passphrase)
        write_atomic(folder / PUB, key.public.to_json().encode(), mode=PUBLIC)
        write_atomic(folder / ROOT, root.to_bytes(), mode=PUBLIC)
        with BrokerStore(folder / BOOKS, time.time, create=True):
            pass
    except BaseException:
        _remove(folder)
        raise
    note(f"wrote {folder}; broker {key.public.id.hex()}, for the seller with root {root.fingerprint.hex()}")
    note("if its key is lost, copies sealed for it cannot be opened: keep a copy of broker.key")
    return 0


def _remove(folder: Path) -> None:
    """Removes an unfinished folder that this command made."""
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _policy(args: argparse.Namespace) -> int:
    device = _device(args.device)
    evidence = tokens.verify(_token(args.token), device.signing_public)
    if evidence.ueid != device.ueid:
        raise RefusedError(Refusal.WRONG_DEVICE, "evidence is of another device")
    path = args.folder / POLICY
    policy = AppraisalPolicy.of(evidence)
    if args.add:
        policy = _read_policy(args.folder).with_values_of(evidence)
    write_atomic(path, policy.to_toml(), mode=PUBLIC, overwrite=args.add)
    note(f"wrote {path}: {', '.join(sorted(policy.measurements)) or 'nothing'} measured; read it before you serve")
    return 0


def _allow(args: argparse.Namespace) -> int:
    device = _device(args.device)
    with _books(args.folder) as store:
        store.allow(args.buyer, device, args.until)
    note(f"allowed on device {device.ueid.hex()}; fingerprint {device.fingerprint.hex()}")
    return 0


def _deny(args: argparse.Namespace) -> int:
    ueid = None if args.ueid is None else _ueid(args.ueid)
    with _books(args.folder) as store:
        count = store.deny(args.buyer, ueid)
    if not count:
        raise MisuseError("there was no such authorisation", hint=f"variegate broker list {args.folder}")
    note(f"withdrew {count}; copies released before stay released")
    return 0


def _revoked(args: argparse.Namespace) -> int:
    with _books(args.folder) as store:
        root = store.roots(_root(args.folder))[-1]
        revocations = store.revoke(read_capped(args.list, limit=MAX_STATEMENT_BYTES), root)
    note(f"accepted list {revocations.serial}: {len(revocations.ueids)} devices")
    return 0


def _follow(args: argparse.Namespace) -> int:
    with _books(args.folder) as store:
        root = store.follow(read_capped(args.statement, limit=MAX_STATEMENT_BYTES), _root(args.folder))
    note(f"{args.folder} serves the seller with root {root.fingerprint.hex()}")
    note("copies under earlier roots stay valid on devices that have opened them; no new copy is valid under those")
    return 0


def _list(args: argparse.Namespace) -> int:
    with _books(args.folder) as store:
        entries = store.authorisations()
        gone = store.revocations()
    now = time.time()
    data = [
        {
            "buyer": one.buyer,
            "ueid": one.ueid.hex(),
            "until": one.until,
            "state": "revoked" if gone.contains(one.ueid) else "ended" if (one.until or now + 1) <= now else "allowed",
        }
        for one in entries
    ]
    rows = [(d["buyer"], d["ueid"], _moment(one.until), d["state"]) for d, one in zip(data, entries, strict=True)]
    emit(data, args.json, lambda: table(rows, ("buyer", "ueid", "until", "state")) if rows else "nobody is allowed")
    return 0


def _log(args: argparse.Namespace) -> int:
    with _books(args.folder) as store:
        entries = list(_pages(store, args.after))
    columns = ("number", "time", "event", "ueid", "buyer", "detail")
    rows = [(e.number, _moment(e.time), e.event, e.ueid[:18], e.buyer, e.detail) for e in entries]
    emit([asdict(e) for e in entries], args.json, lambda: table(rows, columns) if rows else "nothing")
    return 0


def _challenge(args: argparse.Namespace) -> int:
    with _books(args.folder) as store:
        nonce = Nonces(store.database, time.time).issue().hex()
    emit({"nonce": nonce}, args.json, lambda: nonce)
    return 0


def _appraise(args: argparse.Namespace) -> int:
    token, policy = _token(args.token), _read_policy(args.folder)
    with _books(args.folder) as store:
        nonces = Nonces(store.database, time.time)
        roots = [root.fingerprint for root in store.roots(_root(args.folder))]
        verifier = Verifier(policy, store.device, nonces, time.time, revocations=store.revocations, roots=lambda: roots)
        appraisal = verifier.appraise(token)
    rows = [("passed" if c.passed else "FAILED", c.name, c.detail) for c in appraisal.checks]
    data = {"tier": appraisal.tier, "good": appraisal.good, "checks": [asdict(c) for c in appraisal.checks]}
    emit(data, args.json, lambda: f"{table(rows)}\n{appraisal.tier}")
    return 0 if appraisal.good else 1


def _serve(args: argparse.Namespace) -> int:
    # The server's packages are an extra; the other commands do without.
    from variegate.serve.broker_app import BrokerService  # noqa: PLC0415
    from variegate.serve.tls import TlsFiles  # noqa: PLC0415

    if (args.certificate is None) != (args.key is None) or (args.client_ca and args.certificate is None):
        raise MisuseError("--certificate and --key need each other, and --client-ca needs both")
    tls = args.certificate and TlsFiles(certificate=args.certificate, key=args.key, client_ca=args.client_ca)
    policy, root = _read_policy(args.folder), _root(args.folder)
    key = BrokerKey.load(check_key_file(args.folder / KEY), passphrase_reader(args.passphrase_file)())

    def started(service: BrokerService) -> None:
        where = address_text(service.address or (args.host, args.port))
        note(f"broker {key.public.id.hex()} listens on {'https' if tls else 'http'}://{where}")

    with _books(args.folder) as store:
        store.roots(root)  # a root that does not fit the books is reported now, not to each device
        broker = Broker(key, root, store, policy, time.time)
        BrokerService(broker, args.host, args.port, tls=tls or None, on_start=started).run()
    return 0


@contextmanager
def _books(folder: Path) -> Iterator[BrokerStore]:
    with BrokerStore(folder / BOOKS, time.time) as store:
        yield store


def _pages(store: BrokerStore, after: int) -> Iterator[LogEntry]:
    while page := list(store.log(after=after, limit=_PAGE)):
        yield from page
        after = page[-1].number


def _root(folder: Path) -> SellerRoot:
    """The root that the broker was made for; those followed since are in its books."""
    return SellerRoot.from_bytes(read_capped(folder / ROOT, limit=MAX_STATEMENT_BYTES))


def _read_policy(folder: Path) -> AppraisalPolicy:
    path = folder / POLICY
    if not path.exists():
        raise MisuseError(f"there is no {path}", hint="variegate broker policy makes one from a good token")
    return AppraisalPolicy.from_toml(read_capped(path, limit=MAX_POLICY_BYTES))


def _device(path: Path) -> DevicePublic:
    return DevicePublic.from_json(read_capped(path, limit=MAX_PUBLIC_TEXT_BYTES))


def _token(path: Path) -> bytes:
    return read_capped(path, limit=MAX_EVIDENCE_BYTES)


def _ueid(text: str) -> bytes:
    with suppress(ValueError):
        ueid = bytes.fromhex(text)
        if len(ueid) == UEID_BYTES:
            return ueid
    raise MisuseError(f"a ueid is {2 * UEID_BYTES} hexadecimal digits", hint="variegate broker list prints them")


def _moment(seconds: int | None) -> str:
    if seconds is None:
        return "no end"
    with suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")
    return str(seconds)
