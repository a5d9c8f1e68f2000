"""The command as people run it: exit status, messages, files, and nothing secret on any stream."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import heed_interrupts
from variegate.cli import console, main
from variegate.keys.identity import DeviceIdentity, DevicePublic
from variegate.keys.rotation import Revocations, follow
from variegate.keys.seller import Seller
from variegate.keys.signing import SellerRoot

PASSPHRASE = "correct horse battery"


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VARIEGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "variegate.cli.main", *arguments],
        cwd=folder,
        env={**clean, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a passphrase file, a seller and a device."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "pass").write_text(PASSPHRASE + "\n")
    (folder / "pass").chmod(0o600)
    seller, device = Seller.generate(), DeviceIdentity.generate("camera-v1")
    seller.save(folder / "seller.key", PASSPHRASE)
    device.save(folder / "device.key", PASSPHRASE)
    (folder / "public.json").write_text(device.public.to_json())
    return folder


def test_generate_seller_and_show_it(home: Path) -> None:
    made = run(home, "keys", "generate", "seller", "--out", "made.key", "--passphrase-file", "pass")
    assert (made.returncode, made.stdout) == (0, "")
    assert stat.S_IMODE((home / "made.key").stat().st_mode) == 0o600
    seller = Seller.load(home / "made.key", PASSPHRASE)
    assert seller.root.fingerprint.hex() in made.stderr
    shown = run(home, "keys", "show", "made.key", "--json", VARIEGATE_PASSPHRASE_FILE="pass")
    value = json.loads(shown.stdout)
    assert value["fingerprint"] == seller.root.fingerprint.hex()
    assert value["kind"] == "seller key"
    for secret in (seller._master, *seller._seeds):
        assert secret.hex() not in made.stderr + shown.stdout + shown.stderr
    again = run(home, "keys", "generate", "seller", "--out", "made.key", "--passphrase-file", "pass")
    assert again.returncode == 2
    assert again.stderr.startswith("variegate: made.key is there already\nhint: ")


def test_generate_device_and_write_its_identity(home: Path) -> None:
    arguments = ("keys", "generate", "device", "--out", "d.key", "--class", "camera-v1", "--kem", "X25519")
    assert run(home, *arguments, VARIEGATE_PASSPHRASE_FILE="pass").returncode == 0
    wrote = run(home, "keys", "identity", "d.key", "--out", "d.json", VARIEGATE_PASSPHRASE_FILE="pass")
    assert wrote.returncode == 0
    public = DevicePublic.from_json((home / "d.json").read_text())
    assert public == DeviceIdentity.load(home / "d.key", PASSPHRASE).public
    # A public file needs no passphrase.
    shown = run(home, "keys", "show", "d.json")
    assert public.fingerprint.hex() in shown.stdout
    assert "device class:  camera-v1\n" in shown.stdout


def test_rotate_revoke_and_root(home: Path) -> None:
    environment = {"VARIEGATE_PASSPHRASE_FILE": "pass"}
    ueids = [f"01{i:064x}" for i in range(3)]
    revoke = ("keys", "revoke", "seller.key", "--revoked", "revoked", "--ueid")
    assert run(home, *revoke, ueids[0], **environment).returncode == 0
    assert run(home, *revoke, *ueids[1:], **environment).returncode == 0
    assert run(home, "keys", "root", "seller.key", "--out", "old.root", **environment).returncode == 0
    old = SellerRoot.from_bytes((home / "old.root").read_bytes())
    listed = Revocations.verify((home / "revoked").read_bytes(), old, 2)
    assert listed.serial == 2
    assert {ueid.hex() for ueid in listed.ueids} == set(ueids)

    shown = json.loads(run(home, "keys", "show", "revoked", "--json").stdout)
    assert (shown["kind"], shown["serial"], shown["ueid"]) == ("revocation list", 2, ueids)
    assert run(home, "keys", "show", "revoked").stdout.count("\nueid:") == len(ueids)

    turn = ("keys", "rotate", "seller.key", "--out", "new.key", "--statement", "statement")
    taken = run(home, *turn[:-1], "pass", "--revoked", "revoked", **environment)
    assert taken.returncode == 2
    assert not (home / "new.key").exists()
    assert (home / "pass").read_text() == PASSPHRASE + "\n"

    assert run(home, *turn, "--revoked", "revoked", **environment).returncode == 0
    new = Seller.load(home / "new.key", PASSPHRASE)
    assert follow(old, 0, (home / "statement").read_bytes()) == (new.root, 1)
    assert Revocations.verify((home / "revoked").read_bytes(), new.root, 3).ueids == listed.ueids
    # The old key no longer extends the list.
    before = (home / "revoked").read_bytes()
    late = run(home, *revoke, ueids[0], **environment)
    assert late.returncode == 1
    assert late.stderr.startswith("variegate: statement is not signed by the seller's root\nhint: ")
    assert (home / "revoked").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "usage: variegate"),
        (["keys"], 2, "usage: variegate keys"),
        (["keys", "show"], 2, "required: path"),
        (["nonsense"], 2, "invalid choice: 'nonsense'"),
        (["keys", "show", "missing"], 2, "variegate: cannot read missing: no such file or directory\n"),
        (
            ["keys", "show", "pass"],
            1,
            "variegate: pass is not a key file, device identity, seller root or revocation list\n",
        ),
        (["keys", "show", "seller.key"], 2, "hint: give --passphrase-file, or set VARIEGATE_PASSPHRASE_FILE\n"),
        (["keys", "identity", "seller.key", "--out", "x", "--passphrase-file", "pass"], 1, "holds a seller key"),
        (
            ["keys", "root", "public.json", "--out", "x", "--passphrase-file", "pass"],
            1,
            "public.json is not a key file\n",
        ),
        (["keys", "identity", "none", "--out", "x", "--passphrase-file", "pass"], 2, "cannot read none: no such file"),
        (["keys", "root", "seller.key", "--out", "no/x", "--passphrase-file", "pass"], 2, "cannot write no/x"),
        (["keys", "show", "seller.key", "--passphrase-file", "none"], 2, "cannot read the passphrase file none"),
        (["keys", "show", "seller.key", "--passphrase-file", "seller.key"], 2, "is not UTF-8 text"),
        (["keys", "revoke", "seller.key", "--revoked", "l", "--ueid", "zz"], 2, "written in hexadecimal"),
        (["keys", "generate", "device", "--out", "x", "--class", "", "--passphrase-file", "pass"], 2, "device class"),
    ],
)
def test_failures_have_a_status_and_words(home: Path, arguments: list[str], status: int, words: str) -> None:
    before = sorted(path.name for path in home.iterdir())
    done = run(home, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in home.iterdir()) == before


def test_wrong_passphrase_shows_nothing_of_it(home: Path) -> None:
    (home / "wrong").write_text("my other passphrase")
    (home / "wrong").chmod(0o600)
    done = run(home, "keys", "show", "seller.key", "--passphrase-file", "wrong", VARIEGATE_TRACEBACK="1")
    assert done.returncode == 1
    assert done.stderr.endswith("variegate: passphrase is wrong or key file is damaged\n")
    assert "Traceback" in done.stderr
    assert "other passphrase" not in done.stderr
    (home / "wrong").chmod(0o644)
    done = run(home, "keys", "show", "seller.key", "--passphrase-file", "wrong")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "hint: chmod 600 wrong")


def test_a_passphrase_file_from_windows_holds_the_same_passphrase(home: Path) -> None:
    (home / "marked").write_bytes(b"\xef\xbb\xbf" + PASSPHRASE.encode() + b"\r\n")
    (home / "marked").chmod(0o600)
    done = run(home, "keys", "root", "seller.key", "--out", "marked.root", "--passphrase-file", "marked")
    assert done.returncode == 0, done.stderr


def test_a_passphrase_comes_through_a_pipe(home: Path) -> None:
    command = f"{sys.executable} -m variegate.cli.main keys show seller.key --passphrase-file <(cat pass)"
    done = subprocess.run(["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_and_help(home: Path) -> None:
    assert run(home, "--version").stdout.startswith("variegate 0.")
    for command in ("generate", "show", "identity", "root", "rotate", "revoke"):
        done = run(home, "keys", command, "--help")
        assert done.returncode == 0
        assert f"example:\n  variegate keys {command} " in done.stdout


def test_the_group_keys_loads_nothing_heavy(home: Path) -> None:
    program = """
import sys
from variegate.cli.main import main
assert main(["keys", "show", "--help"]) == 0
heavy = {"torch", "onnx", "onnxruntime", "PIL", "variegate.export", "variegate.runtime"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_extras_missing_groups_and_bugs_are_told_apart(tmp_path: Path) -> None:
    """Real modules that fail to import, in place of a group's."""
    (tmp_path / "needs_torch.py").write_text("import torch.nn")
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    (tmp_path / "has_bug.py").write_text("raise ValueError('a secret')")
    (tmp_path / "misses.py").write_text("import no_such_module_of_ours")
    program = f"""
import sys
from variegate.cli import main
sys.path.insert(0, {str(tmp_path)!r})
main.GROUPS = {{name: ("", name) for name in ("needs_torch", "absent_group", "has_bug", "misses")}}
for name in main.GROUPS:
    print(name, main.main([name]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == (
        "variegate: this command needs the package torch\n"
        'hint: pip install "variegate[seller]"\n'
        "needs_torch 2\n"
        "variegate: the group 'absent_group' is not part of this installation\n"
        "absent_group 2\n"
        "variegate: internal error (ValueError)\n"
        "hint: this is a fault in Variegate; set VARIEGATE_TRACEBACK=1 to see where\n"
        "has_bug 1\n"
        "variegate: internal error (ModuleNotFoundError)\n"
        "hint: this is a fault in Variegate; set VARIEGATE_TRACEBACK=1 to see where\n"
        "misses 1\n"
    )


def test_a_reader_that_goes_away_is_no_error(home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "variegate.cli.main", "keys", "show", "public.json"]
    done = subprocess.run(command, cwd=home, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_says_how_to_go_on(home: Path) -> None:
    """A pipe that nobody writes to keeps the command waiting."""
    os.mkfifo(home / "waits")
    command = [sys.executable, "-m", "variegate.cli.main", "keys", "show", "seller.key", "--passphrase-file", "waits"]
    child = subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    try:
        time.sleep(2)
        child.send_signal(signal.SIGINT)
        _, shown = child.communicate(timeout=20)
    finally:
        child.kill()
        (home / "waits").unlink()
    assert (child.returncode, shown) == (130, "\nvariegate: interrupted; run again to continue\n")


def test_every_group_has_a_line_of_help() -> None:
    assert list(main.GROUPS) == ["keys", "export", "broker", "device", "attack", "trace", "demo", "completion"]
    assert all(line and module == f"variegate.cli.{name}" for name, (line, module) in main.GROUPS.items())


def converse(folder: Path, arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """Runs the command on a terminal of its own; returns the wait status and what the terminal showed."""
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover - the other process
        os.chdir(folder)
        os.environ.pop(console.PASSPHRASE_FILE_VARIABLE, None)
        os.execv(sys.executable, [sys.executable, "-m", "variegate.cli.main", *arguments])
    shown = b""
    for answer in answers:
        while not shown.rstrip(b" ").endswith(b":"):
            shown += os.read(terminal, 1000)
        time.sleep(0.05)
        os.write(terminal, answer.encode() + b"\n")
        shown += os.read(terminal, 1000)
    try:
        while part := os.read(terminal, 1000):
            shown += part
    except OSError:
        pass
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    return status, shown.decode()


def test_a_terminal_is_asked_twice_for_a_new_key(home: Path) -> None:
    status, shown = converse(home, ["keys", "generate", "seller", "--out", "tty.key"], ["hunter22", "hunter22"])
    assert status == 0, shown
    assert "hunter22" not in shown
    assert Seller.load(home / "tty.key", "hunter22").serial == 0
    status, shown = converse(home, ["keys", "generate", "seller", "--out", "tty2.key"], ["hunter22", "hunter23"])
    assert status == 2
    assert "the two passphrases differ" in shown
    assert not (home / "tty2.key").exists()


def test_table_aligns_texts_left_and_numbers_right() -> None:
    rows = [("a", 5), ("long name", 1234)]
    assert console.table(rows, ("name", "count")) == "name       count\na              5\nlong name   1234"
    assert console.table([]) == ""


def test_progress_off_a_terminal_is_a_line_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with console.Progress("sealing", 6) as progress:
        for _ in range(6):
            progress.advance()
    assert capsys.readouterr().err == "sealing: 3 of 6\nsealing: 6 of 6\n"
