"""Encryption at rest: nothing of what a device keeps shows on its disk, and sectors behave as on a plain disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for
from testbed.devices import workplace
from variegate.device_sim.at_rest import STORAGE_KEY_BYTES, AtRest
from variegate.device_sim.changes import SECTOR_BYTES
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.storage import Fault, PowerCut, Storage
from variegate.keys import component
from variegate.keys.envelope import SealedKeys, open_envelope
from variegate.keys.errors import DeviceError, MisuseError, RefusedError
from variegate.keys.primitives import sha256

KEY = bytes(range(STORAGE_KEY_BYTES))
WINDOW = 16


def disk_at(folder: Path, fault: Fault | None = None) -> AtRest:
    return AtRest(Storage(folder, fault=fault), KEY)


def durable(folder: Path, name: str, data: bytes) -> None:
    disk = disk_at(folder)
    disk.create(name)
    disk.write(name, 0, data)
    disk.fsync(name)
    disk.fsync_dir()


def test_is_aes_256_xts_as_described(tmp_path: Path) -> None:
    data = os.urandom(2 * SECTOR_BYTES + 5)
    durable(tmp_path, "x", data)
    raw = (tmp_path / "x").read_bytes()
    assert len(raw) == len(data) + SECTOR_BYTES
    plain = data.ljust(3 * SECTOR_BYTES, b"\0")
    for number in range(3):
        tweak = sha256(b"x")[:8] + number.to_bytes(8, "little")
        cipher = Cipher(algorithms.AES(KEY), modes.XTS(tweak)).decryptor()
        sector = slice(number * SECTOR_BYTES, (number + 1) * SECTOR_BYTES)
        assert cipher.update(raw[sector]) == plain[sector]
    assert not any(raw[3 * SECTOR_BYTES :])


def test_a_key_opens_its_own_disk_only(tmp_path: Path) -> None:
    durable(tmp_path, "x", b"some text to look for" * 20)
    assert disk_at(tmp_path).read("x") == b"some text to look for" * 20
    other = AtRest(Storage(tmp_path), bytes(reversed(KEY)))
    assert len(other.read("x")) == 420
    assert b"text" not in other.read("x")
    (tmp_path / "x").rename(tmp_path / "y")  # a sector means nothing in another file, nor in another place
    assert b"text" not in disk_at(tmp_path).read("y")


def test_a_cohorts_key_does_not_open_this_devices_disk() -> None:
    signer, keys = MemorySigner(), SealedKeys(os.urandom(32), os.urandom(32))
    with workplace() as folder, Device.create(folder / "d", CLASS, signer.root) as device:
        artefact = seal_for(device.identity, signer, keys=keys)
        flash(device, artefact)
        label = device.boot().classify(frames(1)[0])
        ref = open_envelope(artefact.envelope, signer.root).manifest.component
        raw = (folder / "d" / "disk" / "a.component").read_bytes()
        with pytest.raises(RefusedError):  # with the CEK in hand
            component.check(raw[: ref.length], ref)
        cut = component.check(artefact.component, ref)
        payload = component.unseal(artefact.component, cut, keys.cek)
        on_disk = b"".join(path.read_bytes() for path in sorted((folder / "d" / "disk").iterdir()))
        places = {on_disk[at : at + WINDOW] for at in range(len(on_disk) - WINDOW)}
        for secret in (bytes(artefact.component), artefact.envelope, bytes(payload), b"made class camera-v1, root"):
            whole = [secret[at : at + WINDOW] for at in range(len(secret) - WINDOW)]
            assert not places.intersection(w for w in whole if len(set(w)) > 4)  # not the zeros
        # With the chip they do.
        stored = AtRest(Storage(folder / "d" / "disk"), (folder / "d" / "fuses" / "storage").read_bytes())
        assert stored.read("a.component") == bytes(artefact.component)
        assert stored.read("a.envelope") == artefact.envelope
        assert device.boot().classify(frames(1)[0]) == label


def test_the_key_differs_from_device_to_device() -> None:
    signer = MemorySigner()
    with workplace() as folder:
        keys = []
        for name in ("1", "2"):
            with Device.create(folder / name, CLASS, signer.root):
                keys.append((folder / name / "fuses" / "storage").read_bytes())
        assert keys[0] != keys[1]
        assert len(keys[0]) == STORAGE_KEY_BYTES


@pytest.mark.parametrize("raw", [b"", b"x", bytes(SECTOR_BYTES), b"\xff" * 700, b"\xff" * 5000])
def test_what_others_left_on_the_disk_reads_as_noise_and_never_fails(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    disk = disk_at(tmp_path)
    size = disk.size("x")
    assert len(disk.read("x")) == size
    disk.write("x", 3, b"abc")
    disk.truncate("x", 2000)
    disk.fsync("x")
    assert disk_at(tmp_path).read("x", 3, 3) == b"abc"


@pytest.mark.parametrize("left", [1, 500, 505, 511, 512, 513])
@pytest.mark.parametrize("grow", ["write", "truncate"])
def test_what_was_cut_off_does_not_come_back_as_the_file_grows(tmp_path: Path, left: int, grow: str) -> None:
    durable(tmp_path, "x", b"\xff" * 2000)
    os.truncate(tmp_path / "x", left)
    disk = disk_at(tmp_path)
    assert disk.size("x") == max(0, left - SECTOR_BYTES)
    kept = disk.read("x")
    if grow == "write":
        disk.write("x", SECTOR_BYTES, b"abc")
    else:
        disk.truncate("x", SECTOR_BYTES + 3)
    disk.fsync("x")
    assert disk_at(tmp_path).read("x", 0, SECTOR_BYTES) == kept.ljust(SECTOR_BYTES, b"\0")


@pytest.mark.parametrize("left", [500, 511, 512])
def test_a_boot_record_cut_short_is_written_anew_at_once(left: int) -> None:
    with workplace() as folder:
        signer = MemorySigner()
        with Device.create(folder / "d", CLASS, signer.root) as device:
            flash(device, seal_for(device.identity, signer))
        os.truncate(folder / "d" / "disk" / "boot", left)
        with Device.open(folder / "d") as device:
            flash(device, seal_for(device.identity, signer, sequence=2))
            assert device.boot().manifest.sequence == 2


def test_a_missing_file_and_a_bad_name(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        disk_at(tmp_path).read("nothing")
    with pytest.raises(MisuseError):
        disk_at(tmp_path).create("../x")


def test_a_sector_half_written_is_old_or_new() -> None:
    """Two parts of one sector and one of the next, overwritten at odd offsets: never a mixture, never noise."""
    old, outcomes = b"o" * 1000, set()
    with workplace() as folder:
        for seed in range(120):
            durable(folder, "x", old)
            disk = disk_at(folder, Fault(3, seed))
            disk.write("x", 100, b"n" * 50)
            disk.write("x", 400, b"m" * 200)
            with pytest.raises(PowerCut):
                disk.fsync("x")
            found = disk_at(folder).read("x")
            first = {
                old[:512],
                old[:100] + b"n" * 50 + old[150:512],
                old[:100] + b"n" * 50 + old[150:400] + b"m" * 112,
            }
            assert found[:512] in first
            assert found[512:] in {old[512:], b"m" * 88 + old[600:]}
            outcomes.add(found)
    assert len(outcomes) == 6


_OPERATION = st.one_of(
    st.tuples(st.just("create"), st.sampled_from("ab")),
    st.tuples(st.just("remove"), st.sampled_from("ab")),
    st.tuples(st.just("fsync"), st.sampled_from("ab")),
    st.tuples(st.just("write"), st.sampled_from("ab"), st.integers(0, 1700), st.binary(max_size=1200)),
    st.tuples(st.just("truncate"), st.sampled_from("ab"), st.integers(0, 2200)),
    st.tuples(st.just("fsync_dir")),
)


@given(st.lists(_OPERATION, max_size=25))
def test_any_order_of_operations_reads_as_a_plain_disk_would(operations: list[tuple[str, ...]]) -> None:
    with workplace() as folder, workplace() as beside:
        disk, plain = disk_at(folder), Storage(beside)
        for operation, *arguments in operations:
            if operation in {"remove", "fsync", "write", "truncate"} and not plain.exists(arguments[0]):
                continue
            for one in (disk, plain):
                getattr(one, operation)(*arguments)
            assert disk.names() == plain.names()
            for name in plain.names():
                assert disk.size(name) == plain.size(name)
                assert disk.read(name) == plain.read(name)
                assert disk.read(name, 300, 600) == plain.read(name, 300, 600)
        for name in plain.names():
            disk.fsync(name)
        disk.fsync_dir()
        after = disk_at(folder)
        assert {name: after.read(name) for name in after.names()} == {n: plain.read(n) for n in plain.names()}
