"""Revocation lists at export: the registry knows the newest that it has seen."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from testbed import bases
from variegate.cli.main import main
from variegate.export.registry import Registry
from variegate.export.release import make_release
from variegate.export.rewriters import Permutation
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC
from variegate.keys.rotation import Revocations
from variegate.keys.seller import Seller

PASSPHRASE = "only for this test"
UEIDS = [bytes([1]) + bytes([i]) * 32 for i in range(4)]


@pytest.fixture
def seller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seller:
    """A seller's folder with a release and two devices."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pass").write_text(PASSPHRASE)
    (tmp_path / "pass").chmod(0o600)
    monkeypatch.setenv("VARIEGATE_PASSPHRASE_FILE", str(tmp_path / "pass"))
    made = Seller.generate()
    made.save(tmp_path / "seller.key", PASSPHRASE)
    make_release("spring", bases.base(tmp_path), Permutation(), bases.images(64)).save(tmp_path / "release")
    return made


def device(name: str) -> str:
    public = DeviceIdentity.generate("camera-v1", KEM_CLASSIC).public
    Path(f"{name}.json").write_text(public.to_json())
    return public.ueid.hex()


def copy(name: str, revoked: str, out: str, *more: str) -> int:
    seal = ("export", "copy", "release", "--seller", "seller.key", "--buyer", "acme", "--device", f"{name}.json")
    return main([*seal, "--revoked", revoked, "--out", out, *more])


def test_an_older_list_is_refused(seller: Seller, capsys: pytest.CaptureFixture[str]) -> None:
    bad = device("bad")
    device("good")
    first = Revocations().extended([UEIDS[0]])
    Path("1.list").write_bytes(first.sign(seller.signer))
    Path("2.list").write_bytes(first.extended([bytes.fromhex(bad)]).sign(seller.signer))
    Path("2b.list").write_bytes(first.extended([UEIDS[1]]).sign(seller.signer))

    assert copy("good", "1.list", "out") == 0
    # The newest list stops an export, and an older one does not let it through.
    assert copy("bad", "2.list", "more") == 1
    assert "1 of these devices are revoked" in capsys.readouterr().err
    for old in ("1.list", "2b.list"):
        assert copy("bad", old, "more") == 1
        assert "this registry has seen" in capsys.readouterr().err
        assert copy("good", old, "more") == 1
    assert not Path("more").exists()
    assert copy("good", "2.list", "more") == 0
    # Where nothing has been seen, nothing is known to be newer.
    assert copy("good", "1.list", "third", "--registry", "another.sqlite") == 0
    # A list that is not the seller's leaves no registry.
    Path("x.list").write_bytes(first.sign(Seller.generate().signer))
    assert copy("good", "x.list", "fourth", "--registry", "third.sqlite") == 1
    assert not Path("third.sqlite").exists()


def test_the_lists_serial_outlives_a_rotation(seller: Seller) -> None:
    device("good")
    first = Revocations().extended([UEIDS[0]])
    Path("list").write_bytes(first.sign(seller.signer))
    Path("old.list").write_bytes(first.sign(seller.signer))
    assert main(["keys", "rotate", "seller.key", "--out", "n.key", "--statement", "to2", "--revoked", "list"]) == 0
    assert copy("good", "list", "out", "--signer", "n.key") == 0
    assert copy("good", "old.list", "out", "--signer", "n.key") == 1
    assert copy("good", "old.list", "out") == 1


def test_a_registry_from_before_takes_lists(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.sqlite"):
        pass
    with closing(sqlite3.connect(tmp_path / "r.sqlite")) as db:
        db.execute("DROP TABLE revocations")
    newer = Revocations(5, frozenset(UEIDS))
    with Registry(tmp_path / "r.sqlite") as registry:
        registry.remember(newer)
        registry.remember(newer)
        for wrong in (Revocations(4, frozenset(UEIDS)), Revocations(5, frozenset(UEIDS[:3])), Revocations()):
            with pytest.raises(RefusedError) as refused:
                registry.remember(wrong)
            assert refused.value.refusal is Refusal.ROLLED_BACK
        registry.remember(Revocations(7, frozenset()))
    with Registry(tmp_path / "r.sqlite", read_only=True) as registry:
        assert list(registry.rows()) == []


def test_processes_at_once_remember_the_newest(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from variegate.export.registry import Registry
from variegate.keys.errors import RefusedError
from variegate.keys.rotation import Revocations
with Registry(Path("r.sqlite")) as registry:
    for serial in range(int(sys.argv[1]), 60, 3):
        try:
            registry.remember(Revocations(serial, frozenset()))
        except RefusedError:
            pass
"""
    with Registry(tmp_path / "r.sqlite"):
        pass
    commands = [[sys.executable, "-c", program, str(start)] for start in (1, 2, 3)]
    running = [subprocess.Popen(command, cwd=tmp_path) for command in commands]
    try:
        assert [child.wait(120) for child in running] == [0, 0, 0]
    finally:
        for child in running:
            child.kill()
    with Registry(tmp_path / "r.sqlite") as registry:
        with pytest.raises(RefusedError, match="older than list 59"):
            registry.remember(Revocations(58, frozenset()))
        registry.remember(Revocations(59, frozenset()))
