"""Root against a serving device on this machine, which is open: the attacks that a locked one must stop do succeed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from assurance.root import Report, Target, archive, attack, judged
from assurance.root.attacker.attacks import FAILED, SUCCEEDED, Attack, Outcome, Result, carried_out
from assurance.root.attacker.main import ATTACKS
from assurance.root.attacker.needles import Needles
from assurance.root.attacker.victim import Victim
from assurance.root.device import Made, made, served
from assurance.root.run import ARCHIVE
from testbed.bases import base, images
from variegate.keys.identity import DeviceIdentity

_NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"]
HELD_DOWN = os.geteuid() != 0 or subprocess.run(_NAMESPACES, check=False, capture_output=True).returncode != 0
needs_root = pytest.mark.skipif(HELD_DOWN, reason="only root, with namespaces to keep the attacks in, can attack")
NOBODY = Victim(0, 0, Path("/nonexistent"), [])


@needs_root
@pytest.mark.slow
def test_on_an_open_machine_the_attacks_succeed(tmp_path: Path) -> None:
    """One test, since workers of the test run would each attack a device of their own."""
    device = made(tmp_path / "device", base(tmp_path), images(64))
    carried = tmp_path / ARCHIVE
    carried.write_bytes(archive())
    with served(device) as run:
        report = attack(Target(lambda arguments, stdin: run([str(carried), *arguments], stdin), device))
    assert [one.name for one in report.results] == [one.name for one in ATTACKS if not one.machine]
    assert report.left_out == [one.name for one in ATTACKS if one.machine]
    everywhere = {one.name for one in ATTACKS if one.everywhere}
    failed = [one for one in report.results if one.name in everywhere and one.result == FAILED]
    assert not failed, report.table()
    # F5 is mended: an enclave that somebody else holds gets no copy, and a device under it gives no label.
    assert {"seize_first", "seize_by_fork"} <= set(report.names(FAILED)), report.table()
    windows = {one.name: one.windows for one in report.results}
    assert windows["write_code"] > 100
    assert windows["write_data"] > 100
    # Plain reads do obtain what the enclave works on, and no secret: that much the secret pages do.
    assert not any(one.windows for one in report.results if one.row == "reads"), report.table()
    assert sum(report.counts().values()) == len(report.results)
    assert all(one.detail and one.name in report.table() for one in report.results)
    assert json.loads(json.dumps(report.to_json()))["counts"] == report.counts()


@needs_root
@pytest.mark.slow
def test_root_without_the_right_to_trace_opens_nothing_of_an_enclave_that_starts(tmp_path: Path) -> None:
    """As in a locked image: `/proc/PID/fd` asks for no more than to be of the same user, unless a process is closed."""
    device = made(tmp_path / "device", base(tmp_path), images(64))
    carried = tmp_path / ARCHIVE
    carried.write_bytes(archive())
    less = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    code = f"import os, sys; os.execvp('setpriv', [*{less}, sys.executable, *sys.argv[1:]])"
    with served(device) as run:
        target = Target(lambda arguments, stdin: run(["-c", code, str(carried), *arguments], stdin), device)
        for _ in range(2):
            report = attack(target, only=["reopen_at_start", "read_fd"])
            assert report.names(FAILED) == ["read_fd", "reopen_at_start"], report.table()


def test_the_archive_needs_the_standard_library_alone(tmp_path: Path) -> None:
    carried = tmp_path / ARCHIVE
    carried.write_bytes(archive())
    # -I and -S: nothing of this environment is within reach.
    command = [sys.executable, "-I", "-S", str(carried), "--no-needles", "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "no process serves a device\n")


def test_the_attackers_part_imports_nothing_else() -> None:
    for path in (Path(__file__).parents[1] / "assurance/root/attacker").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or name.startswith("assurance.root.attacker"), f"{path}: {name}"


@pytest.mark.parametrize("length", [16, 32, 128])
@pytest.mark.parametrize("at", range(9))
def test_a_window_is_found_wherever_it_stands(length: int, at: int) -> None:
    rng = np.random.default_rng(length)
    windows = [rng.bytes(length) for _ in range(20)]
    memory = rng.bytes(8000 + at) + windows[7] + rng.bytes(8000)
    assert Needles(windows).found(memory) == {7}
    assert Needles(windows).found(memory.replace(windows[7], windows[7][:-1])) == set()


def test_a_window_in_a_later_part_of_memory_is_found() -> None:
    window = bytes(range(100, 132))
    memory = bytearray(3 << 20)
    memory[(2 << 20) - 7 : (2 << 20) + 25] = window
    assert Needles([window]).found(memory) == {0}


def _sleeping(_: Victim) -> Outcome:
    try:
        time.sleep(60)
    finally:
        Path(os.environ["UNDONE"]).touch()
    return Outcome(True, "")


def test_an_attack_that_hangs_is_ended_and_undoes_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDONE", str(tmp_path / "undone"))
    result = carried_out(Attack("sleeping", "none", _sleeping, seconds=0.2), NOBODY)
    assert (result.result, result.detail) == (FAILED, "not done in 0.2 s")
    assert (tmp_path / "undone").exists()
    assert result.seconds < 30


@pytest.mark.parametrize(
    ("run", "detail"),
    [
        (lambda _: os._exit(3), "ended without a message, or too late"),
        (lambda _: os.open("/nonexistent", 0), "ENOENT /nonexistent"),
        (lambda _: 1 // 0, "ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_an_attack_that_breaks_failed(run: object, detail: str) -> None:
    result = carried_out(Attack("broken", "none", run), NOBODY)  # type: ignore[arg-type]
    assert (result.result, result.detail) == (FAILED, detail)


def test_signs_that_are_not_the_copys_count_as_failed() -> None:
    signs = np.ones((3, 1, 2, 2), np.int8)
    signs[1] = -1
    device = Made(Path(), DeviceIdentity.generate("judged-v1").public, [], signs, (2, 2))
    claimed = {"signs": {"0": [1, -1, 1], "15": [1, -1, 1]}}
    right = Result("activations", "F3", SUCCEEDED, "read", 0, 1.0, claimed)
    wrong = Result("activations", "F3", SUCCEEDED, "read", 0, 1.0, {"signs": {"0": [1, 1, 1], "15": [-1, 1, 1]}})
    found = judged(Report([right, wrong]), device)
    assert [one.result for one in found.results] == [SUCCEEDED, FAILED]
    assert found.results[0].detail == "read; the signs of 2 of 2 pixels are right"
