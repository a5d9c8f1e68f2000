"""Nonces that a verifier gives out and accepts once.

    nonce    random (16) || expiry, ms since 1970 (8, big-endian) || mac (16)
    mac      HKDF-Expand(key, "variegate/1/nonce/" || random || expiry, 16)

A nonce is not stored when it is given out, so that requests for many fill nothing. A used nonce is stored until it
expires, and only if an enrolled device has signed for it. Key and used nonces are in the verifier's own file, so that a
restart forgets nothing.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
from collections.abc import Callable
from enum import StrEnum
from types import NoneType

from variegate.attest.database import Database
from variegate.keys.errors import LimitError
from variegate.keys.primitives import KEY_BYTES, hkdf_expand

SCHEMA = """
CREATE TABLE nonce_state (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL, forgotten INTEGER NOT NULL)
STRICT;
CREATE TABLE nonces_used (nonce BLOB PRIMARY KEY, ueid BLOB NOT NULL, until INTEGER NOT NULL) STRICT;
CREATE INDEX nonces_used_by_device ON nonces_used (ueid);
CREATE INDEX nonces_used_by_time ON nonces_used (until);
"""
LIFETIME_S = 120.0
PER_DEVICE = 12
"""Nonces that one device may use within a lifetime of a nonce."""
CAPACITY = 100_000
"""Used nonces kept; beyond, no evidence is taken until some have expired."""
_CONTEXT = b"variegate/1/nonce/"
_RANDOM, _EXPIRY, _MAC = 16, 8, 16
_MS = 1000


class NonceState(StrEnum):
    """The state of a nonce when it was taken."""

    FRESH = "fresh"
    UNKNOWN = "not given out here"
    STALE = "expired"
    REUSED = "used before"


class Nonces:
    """Gives out nonces and takes each back once.

    Args:
        database: Its schema holds `SCHEMA`.
        clock: Unix time in seconds.
        lifetime_s: Seconds that a nonce can be used.
        per_device: Nonces that one device may use within that time.
        capacity: Used nonces kept.

    Raises:
        RefusedError: `MALFORMED`: the file is damaged.
        DeviceError: Storage failed.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        *,
        lifetime_s: float = LIFETIME_S,
        per_device: int = PER_DEVICE,
        capacity: int = CAPACITY,
    ) -> None:
        self._database, self._clock = database, clock
        self._lifetime_ms, self._per_device, self._capacity = round(lifetime_s * _MS), per_device, capacity
        with database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO nonce_state VALUES (1, ?, 0)", (os.urandom(KEY_BYTES),))
            rows = database.typed(db.execute("SELECT key FROM nonce_state"), bytes)
        if len(rows) != 1 or len(rows[0][0]) != KEY_BYTES:
            raise database.damaged()
        self._key: bytes = rows[0][0]

    def issue(self) -> bytes:
        """A fresh nonce, 40 bytes."""
        body = os.urandom(_RANDOM) + (self._now() + self._lifetime_ms).to_bytes(_EXPIRY, "big")
        return body + self._mac(body)

    def take(self, nonce: bytes, ueid: bytes) -> NonceState:
        """Takes a nonce back, for good.

        Args:
            nonce: The nonce in the evidence.
            ueid: The device that signed for it.

        Returns:
            Whether it was fresh; if several take one nonce at once, it is fresh for one only.

        Raises:
            LimitError: The device has used too many, or too many are in use in all.
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed.
        """
        body, mac = nonce[:-_MAC], nonce[-_MAC:]
        if len(body) != _RANDOM + _EXPIRY or not hmac.compare_digest(mac, self._mac(body)):
            return NonceState.UNKNOWN
        expiry = int.from_bytes(body[_RANDOM:], "big")
        with self._database.transaction() as db:
            now = self._now()
            forgotten = self._forget(db, now)
            # Beyond a lifetime from now: given out before the clock was set back.
            if not max(now, forgotten) < expiry <= now + self._lifetime_ms:
                return NonceState.STALE
            if db.execute("SELECT 1 FROM nonces_used WHERE nonce = ?", (nonce,)).fetchone():
                return NonceState.REUSED
            self._hold_to_limits(db, ueid, now)
            db.execute("INSERT INTO nonces_used VALUES (?, ?, ?)", (nonce, ueid, now + self._lifetime_ms))
        return NonceState.FRESH

    def _forget(self, db: sqlite3.Connection, now: int) -> int:
        """Drops used nonces that have expired.

        Returns:
            The latest time at which any was dropped: a clock set back must not make those good again.
        """
        if db.execute("DELETE FROM nonces_used WHERE until <= ?", (now,)).rowcount:
            db.execute("UPDATE nonce_state SET forgotten = max(forgotten, ?)", (now,))
        ((forgotten,),) = self._database.typed(db.execute("SELECT forgotten FROM nonce_state"), int)
        return int(forgotten)

    def _hold_to_limits(self, db: sqlite3.Connection, ueid: bytes, now: int) -> None:
        query, kinds = "SELECT count(*), min(until) FROM nonces_used", (int, (int, NoneType))
        ((count, first),) = self._database.typed(db.execute(f"{query} WHERE ueid = ?", (ueid,)), *kinds)
        if count >= self._per_device:
            raise LimitError("device has asked too often", retry_after_s=(first - now) / _MS)
        ((count, first),) = self._database.typed(db.execute(query), *kinds)
        if count >= self._capacity:
            raise LimitError("too much evidence at once", retry_after_s=(first - now) / _MS)

    def _mac(self, body: bytes) -> bytes:
        return hkdf_expand(self._key, _CONTEXT + body, _MAC)

    def _now(self) -> int:
        return round(self._clock() * _MS)
