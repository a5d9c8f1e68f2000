"""A registry, a broker's books and a ledger that are damaged or another's: refused, by our errors alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.artefacts import MemorySigner
from tests.test_registry import ROW
from variegate.attack.campaign.ledger import Ledger
from variegate.attack.campaign.ledger import create as create_ledger
from variegate.attack.campaign.units import Unit
from variegate.attest.broker_store import BrokerStore
from variegate.attest.nonces import Nonces
from variegate.export.registry import Registry
from variegate.keys.errors import DeviceError, Refusal, RefusedError, VariegateError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.rotation import Revocations, hand_over

_NOW = 1_800_000_000
_SIGNER, _NEXT = MemorySigner(), MemorySigner()
_LIST = Revocations(4, frozenset(bytes([1, i]) * 16 + b"." for i in range(9)))


def _registry(path: Path) -> None:
    with Registry(path) as registry:
        registry.add([replace(ROW, sequence=i, buyer=f"büro {i}") for i in range(1, 30)])
        registry.reserve([(ueid, 3) for ueid in ("02aa", "02bb")])
        registry.remember(_LIST)


def _read_registry(path: Path) -> None:
    with Registry(path, read_only=True) as registry:
        list(registry.rows())
        list(registry.rows(buyer="acme"))
    with Registry(path) as registry:
        registry.reserve([("02aa", None)])
        registry.remember(_LIST)


def _books(path: Path) -> None:
    device = DeviceIdentity.generate("camera-v1").public
    with BrokerStore(path, lambda: _NOW, create=True) as store:
        for i in range(20):
            store.allow(f"büro {i}", device)
        store.revoke(_LIST.sign(_SIGNER), _SIGNER.root)
        store.follow(hand_over(_SIGNER, 2, _NEXT.root), _SIGNER.root)
        nonces = Nonces(store.database, lambda: _NOW)
        nonces.take(nonces.issue(), device.ueid)


def _read_books(path: Path) -> None:
    with BrokerStore(path, lambda: _NOW) as store:
        for one in store.authorisations():
            store.is_allowed(one.buyer, one.ueid)
            store.device(one.ueid)
            store.was_released(one.ueid, bytes(32))
        store.revocations()
        store.roots(_SIGNER.root)
        list(store.log())
        Nonces(store.database, lambda: _NOW).issue()


def _ledger(path: Path) -> None:
    units = [Unit(name=f"f.a.{i:04d}.00000", fleet="f", attack="a", attacker=i, images=(0, 1)) for i in range(20)]
    create_ledger(path.parent, units, {"software": "{}", "büro": "x" * 5000})


def _read_ledger(path: Path) -> None:
    with Ledger(path.parent, write=False) as ledger:
        list(ledger.meta)
        ledger.entries()
        ledger.counts()
        ledger.failures()


KINDS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], None]]] = {
    "registry": ("registry.sqlite", _registry, _read_registry),
    "books": ("books.sqlite", _books, _read_books),
    "ledger": ("ledger.sqlite", _ledger, _read_ledger),
}


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[Path], None]]:
    """A good file, and what reads all of it."""
    name, make, read = KINDS[request.param]
    path = tmp_path / name
    make(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA journal_mode = DELETE")
    read(path)
    return path, read


def test_of_a_damaged_file_only_our_errors_come(kept: tuple[Path, Callable[[Path], None]], tmp_path: Path) -> None:
    path, read = kept
    whole, rng, refused = path.read_bytes(), np.random.default_rng(5), 0
    # The schema with the words in it lies in the first page, of 4 KiB.
    for round_ in range(300):
        data = bytearray(whole)
        end = 4096 if round_ % 2 else len(data)
        for _ in range(rng.integers(1, 12)):
            data[rng.integers(16, end)] = rng.integers(256)
        for beside in tmp_path.glob(path.name + "*"):
            beside.unlink()
        path.write_bytes(data)
        try:
            read(path)
        except VariegateError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE more (a)",
        "CREATE VIEW more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT * FROM n",
        "CREATE TRIGGER more AFTER INSERT ON {table} BEGIN SELECT 1; END",
        "ALTER TABLE {table} RENAME TO t; CREATE VIEW {table} AS SELECT * FROM t",
    ],
)
def test_a_schema_that_is_not_ours_is_refused(script: str, kept: tuple[Path, Callable[[Path], None]]) -> None:
    path, read = kept
    table = {"registry": "copies", "books": "log", "ledger": "failures"}[path.stem]
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script.format(table=table))
    with pytest.raises(RefusedError, match="damaged") as caught:
        read(path)
    assert caught.value.refusal is Refusal.MALFORMED


_COLUMNS = {
    "books.log.detail": str,
    "books.log.event": str,
    "books.revocations.ueids": bytes,
    "books.rotations.statement": bytes,
    "registry.copies.buyer": str,
    "registry.reserved.security_counter": int,
    "registry.reserved.sequence": int,
    "registry.revocations.digest": bytes,
}
_VALUES = {"CAST(x'ff' AS TEXT)": None, "x'00'": None, "-7": None, "7": int, "'x'": str}
"""What is wrong everywhere, and what is right in columns of one type only."""


@pytest.mark.parametrize(
    ("column", "value"), [(c, v) for c, kind in _COLUMNS.items() for v, right in _VALUES.items() if right is not kind]
)
def test_values_of_other_types_are_refused(column: str, value: str, tmp_path: Path) -> None:
    kind, table, column = column.split(".")
    name, make, read = KINDS[kind]
    path = tmp_path / name
    make(path)
    with closing(sqlite3.connect(path)) as db:
        # A table that takes anything, which then is passed off as ours.
        (own,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for trigger, _ in triggers:
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute("PRAGMA writable_schema = ON")
        loose = own.replace(" TEXT", "").replace(") STRICT", ")")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (loose, table))
        db.commit()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"UPDATE {table} SET {column} = {value}")
        for _, sql in triggers:
            db.execute(sql)
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (own, table))
        db.commit()
    with pytest.raises(RefusedError) as caught:
        read(path)
    assert caught.value.refusal is Refusal.MALFORMED


def test_a_busy_file_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("variegate.attest.database._WAIT_S", 0.1)
    path = tmp_path / "books.sqlite"
    _books(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with BrokerStore(path, lambda: _NOW) as store, pytest.raises(DeviceError, match="cannot be read or written"):
            store.record("allowed")


def test_what_was_refused_is_as_it_was(kept: tuple[Path, Callable[[Path], None]]) -> None:
    path, read = kept
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE more (a)")
    before = path.read_bytes()
    with pytest.raises(RefusedError):
        read(path)
    assert path.read_bytes() == before
