"""The chip: counters that only rise, whatever is killed or torn."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from testbed.devices import workplace
from variegate.device_sim.fuses import MAX_VALUE, RECORDS, Fuses
from variegate.keys.errors import DeviceError, MisuseError

RECORD = 64


def test_rises_and_never_falls(tmp_path: Path) -> None:
    with Fuses(tmp_path) as fuses:
        assert fuses.counter("security") == 0
        fuses.advance("security", 5)
        fuses.advance("security", 3)
        assert fuses.counter("security") == 5
        fuses.advance("budget.0", MAX_VALUE)
    with Fuses(tmp_path) as fuses:
        assert fuses.counter("security") == 5
        assert fuses.counter("budget.0") == MAX_VALUE


@pytest.mark.parametrize(("name", "value"), [("", 1), ("x" * 49, 1), ("x", -1), ("x", MAX_VALUE + 1), ("\0", 1)])
def test_refuses_what_it_cannot_hold(tmp_path: Path, name: str, value: int) -> None:
    with Fuses(tmp_path) as fuses, pytest.raises(MisuseError):
        fuses.advance(name, value)


def test_a_full_log_is_rewritten(tmp_path: Path) -> None:
    with workplace() as folder:
        with Fuses(folder) as fuses:
            fuses.advance("other", 7)
            for value in range(1, 2 * RECORDS + 10):
                fuses.advance("budget.1", value)
        with Fuses(folder) as fuses:
            assert (fuses.counter("other"), fuses.counter("budget.1")) == (7, 2 * RECORDS + 9)
        assert (folder / "counters").stat().st_size == RECORDS * RECORD


@pytest.mark.parametrize("landed", range(RECORD + 1))
def test_a_torn_record_was_never_given(tmp_path: Path, landed: int) -> None:
    with Fuses(tmp_path) as fuses:
        fuses.advance("a", 1)
        fuses.advance("a", 2)
    path = tmp_path / "counters"
    whole = path.read_bytes()
    with Fuses(tmp_path) as fuses:
        fuses.advance("a", 3)
    record = path.read_bytes()[2 * RECORD : 3 * RECORD]
    torn = record[:landed].ljust(RECORD, b"\0")
    path.write_bytes(whole[: 2 * RECORD] + torn + whole[3 * RECORD :])
    with Fuses(tmp_path) as fuses:
        assert fuses.counter("a") == (3 if torn == record else 2)
        fuses.advance("a", 9)
    with Fuses(tmp_path) as fuses:
        assert fuses.counter("a") == 9


@pytest.mark.parametrize("damage", ["middle", "short", "long", "after"])
def test_other_damage_is_not_taken_for_a_torn_record(tmp_path: Path, damage: str) -> None:
    with Fuses(tmp_path) as fuses:
        fuses.advance("a", 1)
        fuses.advance("a", 2)
    path = tmp_path / "counters"
    data = bytearray(path.read_bytes())
    if damage == "middle":
        data[20] ^= 1
    elif damage == "short":
        del data[-1]
    elif damage == "long":
        data += b"\0"
    else:
        data[-1] = 1
    path.write_bytes(data)
    with pytest.raises(DeviceError, match="damaged"):
        Fuses(tmp_path)


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with Fuses(tmp_path), pytest.raises(DeviceError, match="in use"):
        Fuses(tmp_path)
    code = f"import pathlib, variegate.device_sim.fuses as f; f.Fuses(pathlib.Path({str(tmp_path)!r}))"
    with Fuses(tmp_path):
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "in use" in child.stderr
    Fuses(tmp_path).close()


def test_off_means_off(tmp_path: Path) -> None:
    fuses = Fuses(tmp_path)
    fuses.close()
    with pytest.raises(DeviceError):
        fuses.advance("a", 1)


def test_threads_share_it(tmp_path: Path) -> None:
    with Fuses(tmp_path) as fuses:

        def raise_to_19(name: str) -> None:
            for value in range(1, 20):
                fuses.advance(name, value)

        threads = [threading.Thread(target=raise_to_19, args=(f"c{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Fuses(tmp_path) as fuses:
        assert [fuses.counter(f"c{n}") for n in range(4)] == [19] * 4


def test_burnt_values_are_replaced_whole_and_private(tmp_path: Path) -> None:
    with Fuses(tmp_path) as fuses:
        assert fuses.load("identity") is None
        fuses.burn("identity", b"one")
        fuses.burn("identity", b"two")
        assert fuses.load("identity") == b"two"
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("write", ["burn", "compact"])
def test_a_chip_that_does_not_take_a_write_is_off(tmp_path: Path, write: str) -> None:
    """Its folder goes: what `write_atomic` calls misuse of a path is the chip's failure here."""
    folder = tmp_path / "chip"
    folder.mkdir()
    with Fuses(folder) as fuses:
        if write == "compact":
            for value in range(1, RECORDS + 1):
                fuses.advance("x", value)
        folder.rename(tmp_path / "gone")
        with pytest.raises(DeviceError, match="chip failed"):
            fuses.burn("x", b"1") if write == "burn" else fuses.advance("x", RECORDS + 1)
        with pytest.raises(DeviceError, match="off"):
            fuses.burn("x", b"1")


CHILD = """
import sys
from pathlib import Path
from variegate.device_sim.fuses import Fuses
fuses = Fuses(Path(sys.argv[1]))
value = fuses.counter("budget.0")
while True:
    value += 1
    fuses.advance("budget.0", value)
    print(value, flush=True)
"""


def test_a_killed_process_loses_nothing_it_was_given(tmp_path: Path) -> None:
    with workplace() as folder:
        last = 0
        for round_ in range(8):
            child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            for _ in range(50 + 700 * round_):  # past the end of the file more than once
                line = child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().splitlines(keepends=True)
            child.wait()
            child.stdout.close()
            reported = int([line, *(r for r in rest if r.endswith("\n"))][-1])
            with Fuses(folder) as fuses:
                assert reported <= fuses.counter("budget.0") <= reported + 1
                assert fuses.counter("budget.0") > last
                last = fuses.counter("budget.0")
        shutil.copytree(folder, tmp_path / "copy")
        with Fuses(tmp_path / "copy") as fuses:
            assert fuses.counter("budget.0") == last
