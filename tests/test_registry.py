"""The registry keeps what it was given, and refuses to forget."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.registries import from_zero
from variegate.export.registry import Numbers, Registry, Row, now
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError

ROW = Row(
    made=now(),
    release="r",
    buyer="acme",
    ueid="01" + "00" * 32,
    device_class="camera-v1",
    epoch=0,
    sequence=1,
    security_counter=0,
    parameters="{}",
    base="aa",
    component="bb",
    artefact="cc",
    file="acme.vgc",
)


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    rows = [replace(ROW, sequence=i, buyer=f"b{i % 2}") for i in range(1, 5)]
    with from_zero(tmp_path / "r.sqlite") as registry:
        registry.add(rows)
    with from_zero(tmp_path / "r.sqlite") as registry:
        assert list(registry.rows()) == rows
        assert [r.sequence for r in registry.rows(buyer="b0")] == [2, 4]
        assert list(registry.rows(ueid="none")) == []
        assert registry.reserve([(ROW.ueid, 0)]) == [Numbers(sequence=5, security_counter=0)]
    assert (tmp_path / "r.sqlite").stat().st_mode & 0o077 == 0


def test_a_reader_makes_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r #1.sqlite"
    with pytest.raises(MisuseError, match="cannot open"):
        Registry(path, read_only=True)
    assert not path.exists()
    path.touch()
    with pytest.raises(RefusedError, match="version"):
        Registry(path, read_only=True)
    assert path.stat().st_size == 0
    with Registry(path) as registry:
        registry.add([ROW])
    with Registry(path, read_only=True) as registry:
        assert [list(registry.rows(ueid=start)) for start in ("0100", ROW.ueid, "02")] == [[ROW], [ROW], []]
        with pytest.raises(DeviceError, match="readonly"):
            registry.add([replace(ROW, sequence=2)])


@pytest.mark.parametrize("name", ["nodir/r.sqlite", "."])
def test_what_cannot_be_opened_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(MisuseError, match=r"cannot open|is a folder"):
        Registry(tmp_path / name)


def test_nothing_is_changed_or_removed(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with Registry(path) as registry:
        registry.add([ROW])
        with pytest.raises(RefusedError, match="UNIQUE"):
            registry.add([replace(ROW, sequence=2), ROW])
        assert list(registry.rows()) == [ROW]
    with sqlite3.connect(path) as raw:
        for statement in ("UPDATE copies SET buyer = 'x'", "DELETE FROM copies"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)
    raw.close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(100)])
def test_another_file_is_no_registry(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.sqlite"
    path.write_bytes(content)
    with pytest.raises(RefusedError) as refused:
        Registry(path)
    assert refused.value.refusal is Refusal.MALFORMED
    assert path.read_bytes() == content


def test_another_database_is_no_registry(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE t (x)")
    raw.commit()
    raw.close()
    with pytest.raises(RefusedError, match="version"):
        Registry(path)
