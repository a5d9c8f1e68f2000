"""A broker's books: enrolled devices, authorisations, the revocation list, used nonces, and the log.

Triggers keep the log append-only against mistakes in a script; whoever owns the file can still replace it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, TracebackType
from typing import Self

from variegate.attest import nonces
from variegate.attest.database import Database
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.fields import UEID_BYTES
from variegate.keys.public_identity import DevicePublic
from variegate.keys.rotation import PinnedRoot, Revocations, follow
from variegate.keys.signing import SellerRoot

_APPLICATION, _VERSION = 0x56474252, 1
_MAX_BUYER = 128
_MAX_TIME = (1 << 53) - 1
_SCHEMA = f"""
{nonces.SCHEMA}
CREATE TABLE devices (ueid BLOB PRIMARY KEY, identity TEXT NOT NULL) STRICT;
CREATE TABLE allowed (buyer TEXT NOT NULL, ueid BLOB NOT NULL, until INTEGER, PRIMARY KEY (buyer, ueid)) STRICT;
CREATE TABLE revocations (serial INTEGER PRIMARY KEY, ueids BLOB NOT NULL) STRICT;
CREATE TABLE log (
  id INTEGER PRIMARY KEY, time INTEGER NOT NULL, event TEXT NOT NULL,
  ueid TEXT NOT NULL, buyer TEXT NOT NULL, model TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE TRIGGER log_no_update BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER log_no_delete BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
_SINCE = """
CREATE TABLE IF NOT EXISTS rotations (serial INTEGER PRIMARY KEY, statement BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS released ON log (ueid, model) WHERE event = 'released';
"""
"""Tables of later versions, which are added to older books."""
_ROTATIONS = "SELECT serial, statement FROM rotations ORDER BY serial"
_NEWEST_LIST = "SELECT serial, ueids FROM revocations ORDER BY serial DESC LIMIT 1"


@dataclass(frozen=True)
class Allowed:
    """One authorisation.

    Attributes:
        buyer: Buyer id.
        ueid: The device, 33 bytes.
        until: Unix seconds after which it ends, or None.
    """

    buyer: str
    ueid: bytes
    until: int | None


@dataclass(frozen=True)
class LogEntry:
    """One line of the log.

    Attributes:
        number: Counts from 1.
        time: Unix seconds.
        event: The kind of event: "released", "refused", "limited", "allowed", "denied", "revoked", "followed".
        ueid: The device, hexadecimal, or empty.
        buyer: Buyer id, or empty.
        model: SHA-256 of the manifest, hexadecimal, or empty.
        detail: Why.
    """

    number: int
    time: int
    event: str
    ueid: str
    buyer: str
    model: str
    detail: str


class BrokerStore:
    """An open store; a context manager. Threads and processes may share the file.

    Args:
        path: The SQLite file.
        clock: Unix time in seconds.
        create: Whether to make it.

    Raises:
        MisuseError: It is not there, is there already, or cannot be opened.
        RefusedError: `MALFORMED`, when it is damaged or another kind of file.
        DeviceError: Storage failed.
    """

    def __init__(self, path: Path, clock: Callable[[], float], *, create: bool = False) -> None:
        self._clock = clock
        self.database = Database(path, _SCHEMA, (_SINCE,), application=_APPLICATION, version=_VERSION, create=create)
        self._roots: tuple[SellerRoot, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.database.close()

    def allow(self, buyer: str, device: DevicePublic, until: int | None = None) -> None:
        """Lets a buyer have shares on a device, and enrols the device. Its fingerprint is the caller's to compare.

        Args:
            buyer: Buyer id, as in manifests.
            device: The device's public identity.
            until: Unix seconds after which this ends, or None.

        Raises:
            MisuseError: The buyer is not 1 to 128 printable characters, or the time is out of its range.
            RefusedError: `KEY`, when another identity is enrolled under this ueid.
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        if not 1 <= len(buyer) <= _MAX_BUYER or not buyer.isprintable():
            raise MisuseError(f"a buyer id is 1 to {_MAX_BUYER} printable characters")
        if until is not None and not 0 <= until <= _MAX_TIME:
            raise MisuseError("an authorisation ends at a time from 1970 on")
        with self.database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO devices VALUES (?, ?)", (device.ueid, device.to_json()))
            row = db.execute("SELECT identity FROM devices WHERE ueid = ?", (device.ueid,)).fetchone()
            if row != (device.to_json(),):
                raise RefusedError(Refusal.KEY, f"device {device.ueid.hex()} is enrolled with another identity")
            db.execute("INSERT OR REPLACE INTO allowed VALUES (?, ?, ?)", (buyer, device.ueid, until))
        self.record("allowed", ueid=device.ueid, buyer=buyer, detail="no end" if until is None else f"until {until}")

    def deny(self, buyer: str, ueid: bytes | None = None) -> int:
        """Takes authorisations back.

        Args:
            buyer: Whose.
            ueid: On which device, or None for all of the buyer's.

        Returns:
            How many there were.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        with self.database.transaction() as db:
            query = "DELETE FROM allowed WHERE buyer = ?1 AND (?2 IS NULL OR ueid = ?2)"
            count = db.execute(query, (buyer, ueid)).rowcount
        self.record("denied", ueid=ueid, buyer=buyer, detail=f"{count} authorisations taken back")
        return count

    def is_allowed(self, buyer: str, ueid: bytes) -> bool:
        """Whether a buyer may have shares on a device now.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        query = "SELECT 1 FROM allowed WHERE buyer = ? AND ueid = ? AND (until IS NULL OR until > ?)"
        return bool(self.database.rows(query, (buyer, ueid, int(self._clock())), int))

    def authorisations(self) -> list[Allowed]:
        """All authorisations, also those that have ended, by buyer and device.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        query = "SELECT buyer, ueid, until FROM allowed ORDER BY buyer, ueid"
        rows = self.database.rows(query, (), str, bytes, (int, NoneType))
        return [Allowed(*row) for row in rows]

    def device(self, ueid: bytes) -> DevicePublic | None:
        """An enrolled device, or None.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        rows = self.database.rows("SELECT identity FROM devices WHERE ueid = ?", (ueid,), str)
        return DevicePublic.from_json(rows[0][0]) if rows else None

    def revoke(self, statement: bytes, root: SellerRoot) -> Revocations:
        """Takes a signed revocation list over.

        Args:
            statement: Hostile bytes.
            root: The seller's keys.

        Returns:
            The list.

        Raises:
            RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`; `ROLLED_BACK`, when it is older than the last,
                or another one with its serial.
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        revocations = Revocations.verify(statement, root, 0)
        with self.database.transaction() as db:
            # In one transaction, so that of two lists at once the older one is refused.
            newest = self._newest(db)
            if revocations.serial < newest.serial:
                message = f"revocation list {revocations.serial} is older than list {newest.serial}"
                raise RefusedError(Refusal.ROLLED_BACK, message)
            if revocations.serial == newest.serial and revocations != newest:
                raise RefusedError(Refusal.ROLLED_BACK, "another revocation list with this serial is here already")
            joined = b"".join(sorted(revocations.ueids))
            db.execute("INSERT OR IGNORE INTO revocations VALUES (?, ?)", (revocations.serial, joined))
        self.record("revoked", detail=f"list {revocations.serial} with {len(revocations.ueids)} devices")
        return revocations

    def revocations(self) -> Revocations:
        """The last list taken over; empty before the first.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        with self.database.transaction() as db:
            return self._newest(db)

    def _newest(self, db: sqlite3.Connection) -> Revocations:
        rows = self.database.typed(db.execute(_NEWEST_LIST), int, bytes)
        if not rows:
            return Revocations()
        serial, joined = rows[0]
        if serial < 0 or len(joined) % UEID_BYTES:
            raise self.database.damaged()
        return Revocations(serial, frozenset(joined[i : i + UEID_BYTES] for i in range(0, len(joined), UEID_BYTES)))

    def follow(self, statement: bytes, first: SellerRoot) -> SellerRoot:
        """Takes the seller's next root over; nothing else changes.

        Args:
            statement: Hostile bytes.
            first: The root that the broker was made for.

        Returns:
            The root from now on.

        Raises:
            RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`; `ROLLED_BACK`, when the serial does not grow; `KEY`,
                when the new root is not one.
            RefusedError: `SIGNATURE`, when the books follow from another root than `first`; `MALFORMED`: the file is
                damaged.
            DeviceError: Storage failed.
        """
        with self.database.transaction() as db:
            chain = self._chain(first, db)
            new = follow(chain[-1].root, chain[-1].serial, statement)
            db.execute("INSERT INTO rotations VALUES (?, ?)", (new.serial, statement))
        self.record("followed", detail=f"root {new.root.fingerprint.hex()}, serial {new.serial}")
        return new.root

    def roots(self, first: SellerRoot) -> tuple[SellerRoot, ...]:
        """The seller's roots: the one that the broker was made for, and those followed since, today's last.

        Args:
            first: The root that the broker was made for.

        Raises:
            RefusedError: `SIGNATURE`, when the books follow from another root than this; `MALFORMED`: the file is
                damaged.
            DeviceError: Storage failed.
        """
        with self.database.transaction() as db:
            count = db.execute("SELECT count(*) FROM rotations").fetchone()[0]
            known = self._roots
            if len(known) == count + 1 and known[0] == first:
                return known
            self._roots = roots = tuple(pinned.root for pinned in self._chain(first, db))
        return roots

    def _chain(self, first: SellerRoot, db: sqlite3.Connection) -> list[PinnedRoot]:
        """Roots from the first on. The statements are verified again each time: only they name the next root."""
        chain = [PinnedRoot(first, 0)]
        for serial, statement in self.database.typed(db.execute(_ROTATIONS), int, bytes):
            try:
                chain.append(follow(chain[-1].root, chain[-1].serial, statement))
            except RefusedError as error:
                if error.refusal is not Refusal.SIGNATURE:
                    raise self.database.damaged() from None
                hint = "give the root with which the broker was made: its books hold the later ones"
                raise RefusedError(error.refusal, "books do not follow from this root", hint=hint) from None
            if chain[-1].serial != serial:
                raise self.database.damaged()
        return chain

    def was_released(self, ueid: bytes, model: bytes) -> bool:
        """Whether a copy's share was released to a device before.

        Args:
            ueid: The device.
            model: SHA-256 of the copy's manifest.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        query = "SELECT 1 FROM log WHERE event = 'released' AND ueid = ? AND model = ? LIMIT 1"
        return bool(self.database.rows(query, (ueid.hex(), model.hex()), int))

    def record(
        self, event: str, *, ueid: bytes | None = None, buyer: str = "", model: bytes | None = None, detail: str = ""
    ) -> None:
        """Appends a line to the log.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        values = (int(self._clock()), event, (ueid or b"").hex(), buyer, (model or b"").hex(), detail)
        with self.database.transaction() as db:
            db.execute("INSERT INTO log (time, event, ueid, buyer, model, detail) VALUES (?, ?, ?, ?, ?, ?)", values)

    def log(self, *, after: int = 0, limit: int = 1000) -> Iterator[LogEntry]:
        """Lines of the log in order.

        Args:
            after: Number of the last line already seen.
            limit: The most lines given; fewer means that there are no more.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        query = "SELECT id, time, event, ueid, buyer, model, detail FROM log WHERE id > ? ORDER BY id LIMIT ?"
        rows = self.database.rows(query, (after, limit), int, int, str, str, str, str, str)
        return (LogEntry(*row) for row in rows)
