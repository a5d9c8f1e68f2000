"""Databases from before some of today's tables: they are read as they are, and gain the tables when next written to."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.registries import from_zero
from tests.test_registry import ROW
from tests.test_sqlite_damage import KINDS
from variegate.attest.broker_store import BrokerStore
from variegate.export.registry import Registry
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.files import made_or_empty

_PARTS = {"registry": ("reserved", "revocations"), "books": ("rotations",)}
_DROP = {
    "reserved": "DROP TABLE reserved",
    "revocations": "DROP TABLE revocations",
    "rotations": "DROP TABLE rotations; DROP INDEX released",
}


def _made(kind: str, folder: Path, *scripts: str) -> tuple[Path, Callable[[Path], None]]:
    name, make, read = KINDS[kind]
    make(folder / name)
    with closing(sqlite3.connect(folder / name)) as db:
        db.executescript(";".join(scripts))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA journal_mode = DELETE")
    return folder / name, read


def _tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("registry", ["reserved"]),
        ("registry", ["revocations"]),
        ("registry", ["reserved", "revocations"]),
        ("books", ["rotations"]),
    ],
)
def test_an_older_file_gains_what_it_lacks(kind: str, lacking: list[str], tmp_path: Path) -> None:
    path, read = _made(kind, tmp_path, *(_DROP[part] for part in lacking))
    if kind == "registry":
        before = path.read_bytes()
        with Registry(path, read_only=True) as registry:
            assert len(list(registry.rows())) == 29
        assert path.read_bytes() == before
    assert _tables(path).isdisjoint(lacking)
    read(path)
    read(path)
    assert _tables(path) >= set(_PARTS[kind])


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        ("registry", "DROP TRIGGER reserved_no_delete"),
        ("registry", "DROP TRIGGER revocations_no_update"),
        ("registry", "DROP TABLE reserved; CREATE TABLE reserved (ueid, sequence, security_counter)"),
        ("registry", "DROP TABLE revocations; CREATE VIEW revocations AS SELECT 9 AS serial, x'00' AS digest"),
        ("registry", "DROP TABLE reserved; DROP TRIGGER copies_no_delete"),
        ("books", "DROP INDEX released"),
        ("books", "DROP TABLE rotations"),
        ("books", "ALTER TABLE rotations ADD COLUMN more TEXT"),
        ("books", "DROP TABLE rotations; DROP INDEX released; DROP TABLE revocations"),
    ],
)
def test_a_part_that_is_there_by_half_or_in_other_words_is_refused(kind: str, script: str, tmp_path: Path) -> None:
    path, read = _made(kind, tmp_path, script)
    before = path.read_bytes()
    with pytest.raises(RefusedError, match="is damaged") as caught:
        read(path)
    assert caught.value.refusal is Refusal.MALFORMED
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", _PARTS)
def test_an_older_file_that_is_busy_is_taken_on_later(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("variegate.attest.database._WAIT_S", 0.1)
    monkeypatch.setattr("variegate.export.registry._WAIT_S", 0.1)
    path, read = _made(kind, tmp_path, *(_DROP[part] for part in _PARTS[kind]))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DeviceError):
            read(path)
    read(path)


def test_a_busy_registry_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("variegate.export.registry._WAIT_S", 0.1)
    path, _ = _made("registry", tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other, from_zero(path) as registry:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DeviceError, match="locked"):
            registry.reserve([(ROW.ueid, None)])
        other.execute("ROLLBACK")
        # Nothing of it was taken.
        assert [n.sequence for n in registry.reserve([(ROW.ueid, None)])] == [30]


def test_of_two_that_make_one_file_the_second_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the books between the look whether they are there and what is written."""
    path, looked = tmp_path / "books.sqlite", "variegate.attest.database.made_or_empty"

    def overtaken(path: Path) -> bool:
        monkeypatch.setattr(looked, made_or_empty)
        KINDS["books"][1](path)
        return True

    monkeypatch.setattr(looked, overtaken)
    with pytest.raises(MisuseError, match="there already"):
        BrokerStore(path, lambda: 0, create=True)
    KINDS["books"][2](path)
