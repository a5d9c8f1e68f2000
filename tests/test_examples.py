"""The examples run as they stand."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from testbed.artefacts import frames
from testbed.devices import workplace
from testbed.serving import device_with, serving

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch_model", "label"),
        ("onnx_model", "release of 5 classes for frames (3, 16, 16)"),
        ("fleet", "buyer 2"),
        ("attack", "most suspected: alice"),
        ("walkthrough", "accuracy: copies "),
    ],
)
def test_an_example_runs(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert words in capsys.readouterr().out


def test_the_client_of_the_examples_gets_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "frames.npy", frames(3))
    with workplace() as folder, device_with(folder) as device, serving(device.boot()) as service:
        assert service.address is not None
        host, port = service.address
        monkeypatch.setattr(sys, "argv", ["x", f"{host}:{port}", str(tmp_path / "frames.npy")])
        runpy.run_path(str(EXAMPLES / "triton_client.py"), run_name="__main__")
    assert len(capsys.readouterr().out.split()) >= 3
