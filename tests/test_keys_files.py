"""Atomic files, and key files under a passphrase."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from variegate.keys import cbor, keyfile
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.files import made_or_empty, read_capped, write_atomic, write_new
from variegate.keys.keyfile import MAGIC, KeyFile

SECRET = b"the secret of this test"
PASSPHRASE = "correct horse"

WRITE = """
import resource, sys
from pathlib import Path
from variegate.keys.errors import DeviceError
from variegate.keys.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(Path(sys.argv[1]), bytes(5000), overwrite=sys.argv[2] == "over")
except DeviceError as error:
    print(error.message)
    sys.exit(7)
"""


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return keyfile.seal("seller", SECRET, PASSPHRASE)


def put(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_mode_does_not_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "public", b"1", mode=0o644)
        os.umask(0)
        write_atomic(tmp_path / "private", b"2")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["private", "public"]


def test_an_existing_name_is_kept_unless_told(tmp_path: Path) -> None:
    path = put(tmp_path / "key", b"old")
    (tmp_path / "dangling").symlink_to("nowhere")
    for taken in (path, tmp_path / "dangling", tmp_path):
        with pytest.raises(MisuseError, match="there already"):
            write_atomic(taken, b"new")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["dangling", "key"]


def test_of_writers_at_once_one_wins(tmp_path: Path) -> None:
    def attempt(number: int) -> bool:
        try:
            write_atomic(tmp_path / "key", bytes([number]) * 1000)
        except MisuseError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(32)))
    assert sum(won) == 1
    assert (tmp_path / "key").read_bytes() == bytes([won.index(True)]) * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("how", ["new", "over"])
def test_a_write_that_fails_leaves_the_folder_as_it_was(tmp_path: Path, how: str) -> None:
    if how == "over":
        put(tmp_path / "key", b"old")
    command = [sys.executable, "-c", WRITE, str(tmp_path / "key"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "file too large" in done.stdout
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"key": b"old"} if how == "over" else {})


@pytest.mark.parametrize("where", ["missing/key", "file/key"])
def test_a_folder_that_is_none_is_misuse(tmp_path: Path, where: str) -> None:
    put(tmp_path / "file", b"")
    with pytest.raises(MisuseError, match="cannot write"):
        write_atomic(tmp_path / where, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_replacing_a_folder_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(MisuseError):
        write_atomic(tmp_path / "key", b"new", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_new_file_takes_the_place_of_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for name, target in (("full", victim), ("dangling", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(FileExistsError):
            write_new(name, b"data", folder=folder)
        assert not made_or_empty(tmp_path / name)
    with pytest.raises(FileExistsError):
        write_new("victim", b"data", folder=folder)
    write_new("new", b"data", folder=folder, mode=0o644)
    os.close(folder)
    assert victim.read_bytes() == b"kept"
    assert ((tmp_path / "new").read_bytes(), (tmp_path / "new").stat().st_mode & 0o777) == (b"data", 0o644)
    assert made_or_empty(tmp_path / "made")
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600
    assert made_or_empty(tmp_path / "made")
    assert victim.read_bytes() == b"kept"
    assert not (tmp_path / "nowhere").exists()


def test_reading_refuses_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing", "pipe/x"):
        with pytest.raises(MisuseError):
            read_capped(tmp_path / name, limit=10)
    put(tmp_path / "large", bytes(11))
    with pytest.raises(RefusedError) as caught:
        read_capped(tmp_path / "large", limit=10)
    assert caught.value.refusal is Refusal.TOO_LARGE
    assert read_capped(tmp_path / "large", limit=11) == bytes(11)
    if Path("/proc/self/mem").exists():
        with pytest.raises(DeviceError):
            read_capped(Path("/proc/self/mem"), limit=10)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, sealed: bytes, mode: int) -> None:
    path = put(tmp_path / "key", sealed, mode)
    with pytest.raises(RefusedError) as caught:
        keyfile.load(path, "seller", PASSPHRASE)
    assert caught.value.refusal is Refusal.KEY
    assert caught.value.hint == f"chmod 600 {path}"


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "key"
    keyfile.save(path, "device", SECRET, "Größe")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in path.read_bytes()
    # The same letters in decomposed form, as some keyboards send them.
    assert keyfile.load(path, "device", "Gro\u0308\u00dfe") == SECRET
    with pytest.raises(MisuseError, match="there already"):
        keyfile.save(path, "device", b"other", "Größe")
    with pytest.raises(RefusedError, match="holds a device key, not a seller key"):
        keyfile.load(path, "seller", "Größe")


def test_two_files_of_one_secret_share_nothing(sealed: bytes) -> None:
    other = keyfile.seal("seller", SECRET, PASSPHRASE)
    assert KeyFile.from_bytes(sealed).salt != KeyFile.from_bytes(other).salt
    assert KeyFile.from_bytes(sealed).sealed != KeyFile.from_bytes(other).sealed


def test_wrong_passphrase_and_damage_are_refused_in_the_same_words(sealed: bytes) -> None:
    words = set()
    flips = [len(sealed) - 1, len(sealed) - 30]
    for data, passphrase in [(sealed, "wrong")] + [(flip(sealed, at), PASSPHRASE) for at in flips]:
        with pytest.raises(RefusedError) as caught:
            KeyFile.from_bytes(data).open(passphrase)
        assert caught.value.refusal is Refusal.KEY
        words.add((str(caught.value), caught.value.hint))
    assert words == {("passphrase is wrong or key file is damaged", None)}


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_the_header_is_authenticated(sealed: bytes) -> None:
    header, body = cbor.decode(sealed[len(MAGIC) :], limit=4096)
    kind, costs, salt = cbor.decode(header, limit=4096)
    for fields in (["device", costs, salt], [kind, [costs[0], costs[1], 3], salt], [kind, costs, bytes(16)]):
        changed = MAGIC + cbor.encode([cbor.encode(fields), body])
        with pytest.raises(RefusedError) as caught:
            KeyFile.from_bytes(changed).open(PASSPHRASE)
        assert caught.value.refusal is Refusal.KEY


@pytest.mark.parametrize(
    "costs",
    [
        [1 << 30, 3, 4],  # 1 TiB
        [512 * 1024 + 1, 3, 4],
        [64 * 1024 - 1, 3, 4],
        [64 * 1024, 2, 4],
        [64 * 1024, 11, 4],
        [64 * 1024, 1 << 31, 4],
        [64 * 1024, 3, 0],
        [64 * 1024, 3, 17],
        [64 * 1024, 3, True],
        [64 * 1024, 3],
        ["65536", 3, 4],
    ],
)
def test_costs_out_of_range_are_refused_at_once(costs: list[object]) -> None:
    data = MAGIC + cbor.encode([cbor.encode(["seller", costs, bytes(16)]), bytes(40)])
    began = time.perf_counter()
    with pytest.raises(RefusedError) as caught:
        KeyFile.from_bytes(data).open(PASSPHRASE)
    assert caught.value.refusal is Refusal.KEY
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        b"-----BEGIN PRIVATE KEY-----",
        MAGIC + b"\x80",
        MAGIC + cbor.encode([b"", bytes(40)]),
        MAGIC + cbor.encode([cbor.encode(["other", [65536, 3, 4], bytes(16)]), bytes(40)]),
        MAGIC + cbor.encode([cbor.encode(["seller", [65536, 3, 4], bytes(15)]), bytes(40)]),
        MAGIC + cbor.encode([cbor.encode(["seller", [65536, 3, 4], bytes(16)]), bytes(16)]),
        MAGIC + cbor.encode([cbor.encode(["seller", [65536, 3, 4], bytes(16)]), bytes(40)]) + b"\x00",
    ],
)
def test_what_is_no_key_file_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        KeyFile.from_bytes(data)
    assert caught.value.refusal is Refusal.KEY


def test_passphrases_that_are_none(tmp_path: Path) -> None:
    for passphrase in ("", "hunter\udcff"):
        with pytest.raises(MisuseError) as caught:
            keyfile.save(tmp_path / "key", "seller", SECRET, passphrase)
        assert "hunter" not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(MisuseError):
        keyfile.seal("other", SECRET, PASSPHRASE)
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_for_argon2id_is_a_device_error() -> None:
    program = f"""
import resource
from variegate.keys import keyfile
from variegate.keys.errors import DeviceError
now = int(open("/proc/self/statm").read().split()[0]) * {resource.getpagesize()}
resource.setrlimit(resource.RLIMIT_AS, (now + (20 << 20),) * 2)
try:
    keyfile.seal("seller", b"secret", "passphrase")
except DeviceError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "KiB of memory" in done.stdout, done.stderr
