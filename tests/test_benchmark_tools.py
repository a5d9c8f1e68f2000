"""Benchmarks write complete results, and time their candidates in pairs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from testbed import result
from testbed.result import FOLDERS, committed, result_path, write_result
from testbed.timing import alternate, ratio
from variegate.keys.errors import MisuseError

REPOSITORY = Path(__file__).parents[1]

SCRIPT = """
import sys
from pathlib import Path
from testbed.result import write_result
write_result("probe", figures={"a": 1.5}, raw=[1, 2], seeds=[0], n={"images": 3}, path=Path(sys.argv[1]))
"""


def test_result_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "probe.json"
    written = write_result("probe", figures={"a": 1.5}, raw=[1, 2], seeds=[0], n={"images": 3}, path=path)
    assert written == path
    document = json.loads(path.read_text())
    assert list(document) == [
        *("command", "commit", "date", "source", "seeds", "n", "versions", "cpu", "figures", "raw"),
    ]
    assert (document["figures"], document["raw"]) == ({"a": 1.5}, [1, 2])
    assert (document["seeds"], document["n"]) == ([0], {"images": 3})
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|uncommitted|unknown", document["commit"])
    age = datetime.now(UTC) - datetime.fromisoformat(document["date"])
    assert -1 <= age.total_seconds() < 60
    assert document["versions"]["numpy"] == np.__version__
    assert document["cpu"]["cores"] == os.cpu_count()
    assert [file.name for file in path.parent.iterdir()] == ["probe.json"]


def test_command_is_the_one_that_was_run(tmp_path: Path) -> None:
    (tmp_path / "probe_command.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, "-m", "probe_command", "out put.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"},
        check=True,
    )
    document = json.loads((tmp_path / "out put.json").read_text())
    assert document["command"] == "python -m probe_command 'out put.json'"
    assert "torch" not in document["versions"]


def test_a_command_does_not_name_the_machines_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        sys, "argv", ["x", "--out", str(FOLDERS["benchmarks"] / "a.json"), "--state", str(tmp_path / "b"), "c/d"]
    )
    assert result._command().endswith(" --out benchmarks/results/a.json --state b c/d")
    for path in (path for folder in FOLDERS.values() for path in folder.glob("*.json")):
        assert "/tmp/" not in json.loads(path.read_text())["command"]


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), np.float32(1)])
def test_figures_that_json_cannot_hold_leave_the_old_result(tmp_path: Path, figure: float) -> None:
    path = tmp_path / "probe.json"
    path.write_text("old")
    with pytest.raises(MisuseError):
        write_result("probe", figures={"a": figure}, raw=None, seeds=[], n={}, path=path)
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["", "../probe", "Probe", "a b"])
def test_result_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(MisuseError):
        write_result(name, figures={}, raw=None, seeds=[], n={}, path=tmp_path / "probe.json")


def test_only_a_full_run_reaches_the_committed_file(tmp_path: Path) -> None:
    assert result_path("probe", quick=False, out=None) == FOLDERS["benchmarks"] / "probe.json"
    assert result_path("fuzz", quick=False, out=None) == FOLDERS["assurance"] / "fuzz.json" == committed("fuzz")
    assert result_path("probe", quick=True, out=tmp_path / "x.json") == tmp_path / "x.json"
    quick = result_path("probe", quick=True, out=None)
    assert not set(FOLDERS.values()) & set(quick.parents)
    quick.parent.rmdir()


def test_alternate_rotates_and_pairs() -> None:
    calls: list[str] = []
    candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = alternate(candidates, repeats=4, seconds=1e-9)
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(value > 0 for values in samples.values() for value in values)
    assert "".join(calls[-12:]) == "abcbcacababc"


def test_ratio_finds_the_factor_between_two_sleeps() -> None:
    candidates = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.006)}
    interval = ratio(alternate(candidates, repeats=9, seconds=0.01), "long", "short")
    assert interval.low <= interval.median <= interval.high
    assert 2 < interval.median < 4


def test_ratio_pairs_the_samples() -> None:
    samples = {"a": [2.0, 20.0, 200.0], "b": [1.0, 10.0, 100.0]}
    assert ratio(samples, "a", "b") == (2.0, 2.0, 2.0)


def test_ratio_interval_is_reproducible_and_covers_the_truth() -> None:
    generator = np.random.default_rng(5)
    samples = {"a": (3 + generator.normal(0, 0.1, 51)).tolist(), "b": [1.0] * 51}
    interval = ratio(samples, "a", "b")
    assert interval == ratio(samples, "a", "b")
    assert 2.9 < interval.low < 3 < interval.high < 3.1


@pytest.mark.parametrize(("repeats", "seconds"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_timing_refuses_what_makes_no_sense(repeats: int, seconds: float) -> None:
    with pytest.raises(MisuseError):
        alternate({"a": int}, repeats=repeats, seconds=seconds)
    with pytest.raises(MisuseError):
        ratio({"a": [1.0], "b": []}, "a", "b")
    with pytest.raises(MisuseError):
        ratio({"a": [1.0]}, "a", "b")
