"""The disk: what a power cut may leave, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.devices import workplace
from variegate.device_sim.changes import SECTOR_BYTES
from variegate.device_sim.storage import Fault, PowerCut, Storage
from variegate.keys.errors import DeviceError, MisuseError


def durable(folder: Path, name: str, data: bytes) -> None:
    disk = Storage(folder)
    disk.create(name)
    disk.write(name, 0, data)
    disk.fsync(name)
    disk.fsync_dir()


def test_reads_what_was_written_before_and_after_a_sync(tmp_path: Path) -> None:
    disk = Storage(tmp_path)
    disk.create("x")
    disk.write("x", 4, b"abcdef")
    assert disk.read("x") == b"\0\0\0\0abcdef"
    disk.write("x", 6, b"ZZ")
    disk.truncate("x", 9)
    assert disk.read("x", 3, 100) == b"\0abZZe"
    disk.fsync("x")
    assert disk.read("x") == b"\0\0\0\0abZZe"
    disk.truncate("x", 2)
    disk.truncate("x", 6)
    disk.write("x", 5, b"!")
    assert disk.read("x") == b"\0\0\0\0\0!"
    assert disk.read("x", 6) == b""
    assert disk.size("x") == 6


def test_what_was_not_synced_is_gone(tmp_path: Path) -> None:
    durable(tmp_path, "kept", b"old")
    disk = Storage(tmp_path)
    disk.write("kept", 0, b"new")
    disk.create("lost")
    disk.write("lost", 0, b"x")
    disk.fsync("lost")  # its bytes, not its name
    disk.rename("kept", "moved")
    after = Storage(tmp_path)
    assert after.names() == ["kept"]
    assert after.read("kept") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_names_change_only_with_the_folder(tmp_path: Path) -> None:
    durable(tmp_path, "a", b"1")
    durable(tmp_path, "b", b"2")
    disk = Storage(tmp_path)
    disk.rename("a", "b")
    disk.create("a")
    disk.remove("a")
    assert disk.names() == ["b"]
    assert disk.read("b") == b"1"
    assert Storage(tmp_path).read("b") == b"2"
    disk = Storage(tmp_path)
    disk.rename("a", "b")
    disk.fsync_dir()
    assert Storage(tmp_path).names() == ["b"]
    assert Storage(tmp_path).read("b") == b"1"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/etc/passwd", ".hidden", "A", "x" * 65, "a\0"])
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    disk = Storage(tmp_path)
    with pytest.raises(MisuseError):
        disk.create(name)
    with pytest.raises(MisuseError):
        disk.read(name)


def test_a_missing_file_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        Storage(tmp_path).read("nothing")


def test_after_a_cut_there_is_no_power(tmp_path: Path) -> None:
    disk = Storage(tmp_path, fault=Fault(2))
    disk.create("x")
    with pytest.raises(PowerCut):
        disk.write("x", 0, b"a")
    with pytest.raises(PowerCut):
        disk.read("x")
    with pytest.raises(PowerCut):
        disk.fsync_dir()
    assert disk.operations == 2


def test_sectors_land_or_do_not_and_every_outcome_comes() -> None:
    """A file of three sectors overwritten in one write, at an odd offset: each sector is old or new."""
    old, new = b"o" * (3 * SECTOR_BYTES), b"n" * (2 * SECTOR_BYTES + 100)
    outcomes = set()
    with workplace() as folder:
        for seed in range(200):
            durable(folder, "x", old)
            disk = Storage(folder, fault=Fault(2, seed))
            disk.write("x", 50, new)
            with pytest.raises(PowerCut):
                disk.fsync("x")
            found = Storage(folder).read("x")
            whole = old[:50] + new + old[50 + len(new) :]
            landed = []
            for start in range(0, len(old), SECTOR_BYTES):
                sector = slice(start, start + SECTOR_BYTES)
                assert found[sector] in {old[sector], whole[sector]}
                landed.append(found[sector] == whole[sector])
            outcomes.add(tuple(landed))
    assert len(outcomes) == 8


def test_a_cut_is_repeatable(tmp_path: Path) -> None:
    found = []
    for run in ("1", "2"):
        folder = tmp_path / run
        folder.mkdir()
        durable(folder, "x", bytes(4096))
        disk = Storage(folder, fault=Fault(4, seed=5))
        disk.write("x", 0, b"a" * 4096)
        disk.create("y")
        disk.rename("x", "z")
        with pytest.raises(PowerCut):
            disk.fsync_dir()
        after = Storage(folder)
        found.append({name: after.read(name) for name in after.names()})
    assert found[0] == found[1]


_OPERATION = st.one_of(
    st.tuples(st.just("create"), st.sampled_from("abc")),
    st.tuples(st.just("remove"), st.sampled_from("abc")),
    st.tuples(st.just("fsync"), st.sampled_from("abc")),
    st.tuples(st.just("rename"), st.sampled_from("abc"), st.sampled_from("abc")),
    st.tuples(st.just("write"), st.sampled_from("abc"), st.integers(0, 700), st.binary(max_size=700)),
    st.tuples(st.just("truncate"), st.sampled_from("abc"), st.integers(0, 1200)),
    st.tuples(st.just("fsync_dir")),
)


@given(st.lists(_OPERATION, max_size=25), st.integers(0, 1 << 20))
def test_any_order_of_operations_reads_as_a_plain_disk_would(operations: list[tuple[str, ...]], seed: int) -> None:
    """Against a dictionary of bytes. At the end all is synced and there, or the power goes and it still opens."""
    with workplace() as folder:
        disk, model = Storage(folder), dict[str, bytearray]()
        for operation, *arguments in operations:
            if operation in {"remove", "fsync", "rename", "write", "truncate"} and arguments[0] not in model:
                continue
            getattr(disk, operation)(*arguments)
            _model(model, operation, *arguments)
            assert {name: disk.read(name) for name in disk.names()} == model
        for name in disk.names():
            disk.fsync(name)
        if seed % 2:
            disk.fsync_dir()
            after = Storage(folder)
            assert {name: after.read(name) for name in after.names()} == model
        else:
            disk._fault = Fault(disk.operations + 1, seed)
            with pytest.raises(PowerCut):
                disk.fsync_dir()
            assert set(Storage(folder).names()) <= set("abc")


def _model(model: dict[str, bytearray], operation: str, *arguments: object) -> None:
    match operation, arguments:
        case "create", (str(name),):
            model[name] = bytearray()
        case "remove", (str(name),):
            del model[name]
        case "rename", (str(old), str(new)):
            model[new] = model.pop(old)
        case "write", (str(name), int(offset), bytes(data)):
            file = model[name]
            file.extend(bytes(max(0, offset + len(data) - len(file)) if data else 0))
            file[offset : offset + len(data)] = data
        case "truncate", (str(name), int(length)):
            file = model[name]
            file.extend(bytes(max(0, length - len(file))))
            del file[length:]
