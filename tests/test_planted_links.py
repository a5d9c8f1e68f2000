"""Whoever may write a folder beside a writer cannot make it write, through a link, to another file of its user."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed import bases
from testbed.artefacts import CLASS, MemorySigner, seal_for
from testbed.result import write_result
from tests.support.registries import from_zero
from tests.support.small_campaign import write_inputs
from variegate.attack.campaign import config
from variegate.attack.campaign import folder as campaigns
from variegate.attack.campaign.prepare import prepare
from variegate.attest.database import Database
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.export.fleet import BATCH, COMPONENT_FILE, Exporter, file_name
from variegate.export.fleet_list import FleetLine
from variegate.export.registry import Registry
from variegate.export.release import Release, make_release
from variegate.export.rewriters import Permutation
from variegate.export.sealing import CopyOrder, Terms
from variegate.keys.errors import DeviceError, MisuseError, RefusedError, VariegateError
from variegate.keys.files import write_atomic
from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC
from variegate.keys.seller import Seller

SELLER = Seller.generate()
SECRET = b"a file that somebody else may not write"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside of the folder that is written to."""
    path = tmp_path / "home" / "victim"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    path.chmod(0o644)
    return path


def unharmed(victim: Path) -> bool:
    """Whether it, and its folder, are as they were."""
    same = victim.read_bytes() == SECRET and victim.stat().st_mode & 0o777 == 0o644
    return same and list(victim.parent.iterdir()) == [victim]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("release")
    made: Release = make_release("spring", bases.base(place), Permutation(alpha=0.8), bases.images(64))
    made.save(place / "spring")
    return place / "spring"


@pytest.mark.parametrize("cohort", [None, "europe"])
def test_a_fleet_follows_no_link_in_its_output_folder(
    release: Path, tmp_path: Path, victim: Path, cohort: str | None
) -> None:
    """Links come while it runs: to names of files that are to be written next, final ones and temporary ones."""
    devices = [DeviceIdentity.generate(CLASS, KEM_CLASSIC).public for _ in range(BATCH + 3)]
    fleet = [FleetLine(buyer=f"b{i}", device=device) for i, device in enumerate(devices)]
    out = tmp_path / "out"
    out.mkdir()
    (out / COMPONENT_FILE).symlink_to(victim)
    later: list[Path] = []

    def plant(done: int, total: int) -> None:
        for w in fleet[done:total]:
            order = CopyOrder(buyer=w.buyer, device=w.device, epoch=0, sequence=1, security_counter=0)
            name = file_name(order, shared=cohort is not None)
            later.append(out / name)
            for link in (out / name, out / f".{name}.part", out / f".{name}", out / f"{name}.tmp"):
                link.symlink_to(victim)

    with from_zero(tmp_path / "r") as registry:
        exporter = Exporter(release, SELLER, Terms(vendor="Example"), out, cohort)
        assert exporter.fleet(fleet, registry, progress=plant).made == len(fleet)
        assert len(later) == 3
        assert not any(path.is_symlink() for path in later)
    assert (out / COMPONENT_FILE).is_symlink() == (cohort is None)
    assert unharmed(victim)


@pytest.mark.parametrize("to", ["missing", "empty", "full"])
def test_a_registry_is_not_made_through_a_link(tmp_path: Path, victim: Path, to: str) -> None:
    target = {"missing": victim.with_name("new"), "empty": tmp_path / "empty", "full": victim}[to]
    if to == "empty":
        target.touch(0o644)
    (tmp_path / "r.sqlite").symlink_to(target)
    with pytest.raises((MisuseError, RefusedError)):
        Registry(tmp_path / "r.sqlite")
    assert unharmed(victim)
    if to == "empty":
        assert (target.stat().st_size, target.stat().st_mode & 0o777) == (0, 0o644)


def test_a_registry_behind_a_link_stays_in_use(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.sqlite"):
        (tmp_path / "link").symlink_to(tmp_path / "r.sqlite")
    with Registry(tmp_path / "link") as registry:
        assert list(registry.rows()) == []


def test_a_database_is_not_made_through_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "d").symlink_to(victim.with_name("new"))
    with pytest.raises(MisuseError):
        Database(tmp_path / "d", "CREATE TABLE t (x);", application=1, version=1, create=True)
    assert unharmed(victim)
    Database(tmp_path / "e", "CREATE TABLE t (x);", application=1, version=1, create=True).close()
    assert (tmp_path / "e").stat().st_mode & 0o777 == 0o600


def test_a_campaign_is_not_made_through_a_link(tmp_path: Path, victim: Path) -> None:
    path = write_inputs(tmp_path)
    prepared = prepare(config.load(path), tmp_path)
    planted = [tmp_path / ".made.preparing", tmp_path / ".made.preparing.0123456789abcdef"]
    for link in planted:
        link.symlink_to(victim.parent)
    killed = tmp_path / ".made.preparing.fedcba9876543210"
    killed.mkdir()
    campaigns.create(tmp_path / "made", prepared)
    assert unharmed(victim)
    assert not (tmp_path / "made").is_symlink()
    assert not killed.exists()
    with sqlite3.connect(tmp_path / "made" / "ledger.sqlite") as db:
        assert db.execute("SELECT count(*) FROM units").fetchone()[0] > 0
    db.close()


@pytest.mark.parametrize("name", ["boot", "b.component", "audit.0"])
def test_a_device_writes_through_no_link_that_comes_while_it_is_on(tmp_path: Path, victim: Path, name: str) -> None:
    signer = MemorySigner()
    with Device.create(tmp_path / "d", CLASS, signer.root) as device:
        for sequence in (1, 2, 3):
            flash(device, seal_for(device.identity, signer, sequence=sequence))
        names = device.slots.storage.names()
        real = next(n for n in names if n == name or (name == "audit.0" and n.startswith(("log", "audit"))))
        path = tmp_path / "d" / "disk" / real
        path.unlink()
        path.symlink_to(victim)
        newer = [seal_for(device.identity, signer, sequence=sequence) for sequence in (4, 5)]
        with pytest.raises(VariegateError):
            _ = [flash(device, artefact) for artefact in newer]
    assert unharmed(victim)


def test_a_chip_makes_no_lock_through_a_link(tmp_path: Path, victim: Path) -> None:
    Device.create(tmp_path / "d", CLASS, MemorySigner().root).close()
    lock = tmp_path / "d" / "fuses" / "lock"
    lock.unlink()
    lock.symlink_to(victim.with_name("new"))
    with pytest.raises(DeviceError):
        Device.open(tmp_path / "d")
    assert unharmed(victim)


def _result(path: Path) -> None:
    write_result("planted", figures={"a": 1}, raw={}, seeds=[], n={}, path=path)


def _file(path: Path) -> None:
    write_atomic(path, b"data", overwrite=True)


@pytest.mark.parametrize("write", [_result, _file])
def test_a_writer_replaces_a_link_and_takes_no_name_that_can_be_guessed(
    tmp_path: Path, victim: Path, write: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    names = ["made", ".made.part", ".made.partial", ".made.tmp", "made.tmp", ".made", "made.part"]
    for name in names:
        (out / name).symlink_to(victim)
    write(out / "made")
    assert unharmed(victim)
    assert not (out / "made").is_symlink()
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
