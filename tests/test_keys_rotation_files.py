"""Rotation and revocation as files: processes at once, and kills at every step."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from variegate.cli.main import main
from variegate.keys.errors import MisuseError
from variegate.keys.files import clear_leftovers, write_atomic
from variegate.keys.rotation import Revocations, follow
from variegate.keys.rotation_files import extend, rotate
from variegate.keys.seller import Seller

PASSPHRASE = "only for this test"
UEIDS = [bytes([1]) + bytes([i]) * 32 for i in range(4)]

SLOW = """
import sys, time
from variegate.cli.main import main
from variegate.keys.rotation import Revocations
sign = Revocations.sign
def slow(self, signer):
    time.sleep(1)  # the list has been read, and is not yet written
    return sign(self, signer)
Revocations.sign = slow
sys.exit(main(sys.argv[1:]))
"""

KILLED = """
import functools, json, os, shutil, signal, sys, tempfile
from pathlib import Path
from variegate.cli.main import main
from variegate.keys import keyfile

# Passphrases that cost little: there are many runs.
keyfile.WRITTEN_COSTS = keyfile.Argon2Costs(memory_kib=32, iterations=1, lanes=4)

def run(command, die_at):
    '''The command in a process of its own, killed before its call number `die_at` that changes the disk.'''
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = 0
    def counted(call):
        @functools.wraps(call)
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return wrapped
    for module, names in ((os, ("replace", "link", "unlink", "fsync", "fchmod")), (tempfile, ("mkstemp",))):
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
    sys.stderr = open(os.devnull, "w")
    os._exit(main(command))

template, setup, command = Path("template"), json.loads(sys.argv[1]), json.loads(sys.argv[2])
template.mkdir()
os.chdir(template)
for one in setup:
    assert run(one, 0) == 0, one
os.chdir("..")
for number in range(1, 1000):
    place = Path(f"killed-{number}")
    shutil.copytree(template, place)
    os.chdir(place)
    first = run(command, number)
    assert first in (0, -signal.SIGKILL), first
    Path("first").write_text(" ".join(sorted(p.name for p in Path().iterdir())))
    again = run(command, 0)
    Path("again").write_text(str(again))
    os.chdir("..")
    if first == 0:
        break
print(number)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pass").write_text(PASSPHRASE)
    (tmp_path / "pass").chmod(0o600)
    monkeypatch.setenv("VARIEGATE_PASSPHRASE_FILE", str(tmp_path / "pass"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def revoke(*numbers: int) -> list[str]:
    return ["keys", "revoke", "seller.key", "--revoked", "revoked.list", "--ueid", *(UEIDS[i].hex() for i in numbers)]


ROTATE = ["keys", "rotate", "seller.key", "--out", "next.key", "--statement", "to2", "--revoked", "revoked.list"]


def test_of_revocations_at_once_none_is_lost(home: Path) -> None:
    seller = Seller.generate()
    seller.save(home / "seller.key", PASSPHRASE)
    commands = [[sys.executable, "-c", SLOW, *revoke(number)] for number in range(3)]
    running = [subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        said = [child.communicate(timeout=120)[1] for child in running]
    finally:
        for child in running:
            child.kill()
    assert [child.returncode for child in running] == [0, 0, 0], said
    listed = Revocations.verify((home / "revoked.list").read_bytes(), seller.root, 0)
    assert (listed.serial, listed.ueids) == (3, frozenset(UEIDS[:3]))
    assert sorted(path.name for path in home.iterdir()) == ["pass", "revoked.list", "seller.key"]


def killed_everywhere(home: Path, setup: list[list[str]], command: list[str], place: Path) -> list[Path]:
    """The folders in which a command was killed at each step and then given again."""
    import json  # noqa: PLC0415

    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(setup), json.dumps(command)],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [place / f"killed-{number}" for number in range(1, int(done.stdout) + 1)]


def cheap(folder: Path, name: str) -> Seller:
    """A seller's keys under a passphrase that cost little."""
    from variegate.keys import keyfile  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyfile, "WRITTEN_COSTS", keyfile.Argon2Costs(memory_kib=32, iterations=1, lanes=4))
        return Seller.load(folder / name, PASSPHRASE)


SETUP = [["keys", "generate", "seller", "--out", "seller.key"], revoke(0, 1)]


def test_a_rotation_that_was_killed_goes_on(home: Path, tmp_path: Path) -> None:
    places = killed_everywhere(home, SETUP, ROTATE, tmp_path)
    assert len(places) > 15  # three files, each in several steps
    begun = 0
    for place in places:
        names = sorted(path.name for path in place.iterdir())
        assert names == ["again", "first", "next.key", "revoked.list", "seller.key", "to2"], place.name
        assert (place / "again").read_text() == "0", place.name
        old, new = cheap(place, "seller.key"), cheap(place, "next.key")
        assert follow(old.root, 0, (place / "to2").read_bytes()) == (new.root, 1)
        listed = Revocations.verify((place / "revoked.list").read_bytes(), new.root, 2)
        assert (listed.serial, listed.ueids) == (2, frozenset(UEIDS[:2]))
        begun += "to2" in (place / "first").read_text().split()
    assert 3 < begun < len(places)


def test_a_revocation_that_was_killed_leaves_a_whole_list_and_nothing_beside_it(home: Path, tmp_path: Path) -> None:
    for place in killed_everywhere(home, SETUP, revoke(2), tmp_path):
        assert sorted(path.name for path in place.iterdir()) == ["again", "first", "revoked.list", "seller.key"]
        assert (place / "again").read_text() == "0"
        listed = Revocations.verify((place / "revoked.list").read_bytes(), cheap(place, "seller.key").root, 2)
        assert listed.ueids == frozenset(UEIDS[:3])


def test_keys_whose_making_was_killed_leave_nothing_beside_the_next(home: Path, tmp_path: Path) -> None:
    for place in killed_everywhere(home, [], ["keys", "generate", "seller", "--out", "n.key"], tmp_path):
        assert sorted(path.name for path in place.iterdir()) == ["again", "first", "n.key"], place.name
        assert (place / "again").read_text() in ("0", "2")  # 2: it was there whole
        cheap(place, "n.key")


def test_a_rotation_goes_on_only_with_what_belongs_to_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Seller.generate()
    old.save(home / "seller.key", PASSPHRASE)
    assert main(revoke(0)) == 0
    new = old.with_new_signing_keys()
    for stranger in (Seller.generate(), Seller.generate().with_new_signing_keys(), new.with_new_signing_keys()):
        stranger.save(home / "next.key", PASSPHRASE, overwrite=True)
        before = (home / "next.key").read_bytes()
        assert main(ROTATE) == 2
        assert "next.key is there already" in capsys.readouterr().err
        assert (home / "next.key").read_bytes() == before
    new.save(home / "next.key", "another passphrase", overwrite=True)
    assert main(ROTATE) == 2
    new.save(home / "next.key", PASSPHRASE, overwrite=True)
    (home / "to2").write_bytes(b"something else")
    assert main(ROTATE) == 2
    assert "to2 is there already" in capsys.readouterr().err
    (home / "to2").unlink()
    listed = (home / "revoked.list").read_bytes()
    (home / "revoked.list").write_bytes(Revocations().extended(UEIDS[3:]).sign(Seller.generate().signer))
    assert main(ROTATE) == 1
    assert not (home / "to2").exists()
    (home / "revoked.list").write_bytes(listed)
    assert main(ROTATE) == 0
    assert "continued from there" in capsys.readouterr().err
    # With all done, and the list extended since, the same command changes nothing.
    extended = [*revoke(1)[:2], "next.key", *revoke(1)[3:]]
    assert main(extended) == 0
    before_all = {path.name: path.read_bytes() for path in home.iterdir()}
    assert main(ROTATE) == 0
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before_all


def test_a_list_of_the_keys_before_says_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Seller.generate()
    old.save(home / "seller.key", PASSPHRASE)
    assert main(revoke(0)) == 0
    assert main(ROTATE[:-2]) == 0
    assert main([*revoke(1)[:2], "next.key", *revoke(1)[3:]]) == 1
    assert "hint: after a rotation, `variegate keys rotate` with --revoked" in capsys.readouterr().err
    assert main(ROTATE) == 0
    assert main([*revoke(1)[:2], "next.key", *revoke(1)[3:]]) == 0


def test_a_list_that_cannot_be_written_costs_no_keys(home: Path) -> None:
    """The keys and their statement stay, and the same command goes on."""
    Seller.generate().save(home / "seller.key", PASSPHRASE)
    lists = home / "lists"
    lists.mkdir()
    command = [*ROTATE[:-1], "lists/revoked.list"]
    assert main([*revoke(0)[:4], "lists/revoked.list", *revoke(0)[5:]]) == 0
    program = "import os, sys; from variegate.cli.main import main\n"
    program += "replace = os.replace\ndef full(a, b, **k):\n    replace(a, b, **k)\n    raise OSError(5, 'I/O error')\n"
    program += "os.replace = full\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    new = Seller.load(home / "next.key", PASSPHRASE)
    assert Revocations.verify((lists / "revoked.list").read_bytes(), new.root, 2).contains(UEIDS[0])
    assert main(command) == 0


def test_leftovers_are_cleared_but_for_those_in_use(tmp_path: Path) -> None:
    names = [".a.key.abcdefgh.part", ".a.key.12345678.part", ".b.key.abcdefgh.part", ".a.key.original", "a.key.part"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    holder = os.open(tmp_path / names[1], os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        clear_leftovers(tmp_path / "a.key")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    finally:
        os.close(holder)
    clear_leftovers(tmp_path / "a.key")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_writers_and_who_clears_after_them_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A process clears all the time, while another writes."""
    path = tmp_path / "a.key"
    program = "import sys; from pathlib import Path; from variegate.keys.files import clear_leftovers\n"
    program += "print('on', flush=True)\nwhile True: clear_leftovers(Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as clearing:
        try:
            assert clearing.stdout is not None
            clearing.stdout.readline()
            for number in range(300):
                write_atomic(path, b"%d" % number, overwrite=number > 0)
                assert path.read_bytes() == b"%d" % number
        finally:
            clearing.kill()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.key"]


def test_a_list_named_by_a_link_stays_one_list(tmp_path: Path) -> None:
    seller, folder = Seller.generate(), tmp_path / "lists"
    folder.mkdir()
    real, link = folder / "real.list", tmp_path / "revoked.list"
    link.symlink_to(real)
    with pytest.raises(MisuseError):
        extend(link, seller, UEIDS[:1])  # a link to nothing
    assert not real.exists()
    extend(real, seller, UEIDS[:1])
    assert extend(link, seller, UEIDS[1:2]).serial == 2
    assert link.is_symlink()
    assert Revocations.verify(real.read_bytes(), seller.root, 2).ueids == set(UEIDS[:2])
    seller.save(tmp_path / "old.key", PASSPHRASE)
    statement, out = tmp_path / "to2.root", str(tmp_path / "new.key")
    new = rotate(seller, out, lambda: PASSPHRASE, statement=statement, revoked=link).seller
    assert link.is_symlink()
    assert Revocations.verify(real.read_bytes(), new.root, 3).ueids == set(UEIDS[:2])
