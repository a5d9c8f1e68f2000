"""What each package shows at its top: few names, and an example in its docstring that runs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.devices import workplace
from variegate.device_sim.device import Device
from variegate.device_sim.world.dataset import batch
from variegate.device_sim.world.network import load_signnet
from variegate.export.intake.base import from_torch
from variegate.keys.seller import Seller

FACES = ("export",)
MOST_NAMES = 8


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the examples speak of: a model's file, images, a seller, a device and its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(from_torch(load_signnet(), (3, 32, 32)).model.SerializeToString())
    signs = batch(7, 0, 1000)
    seller = Seller.generate()
    with workplace() as place, Device.create(place / "car", "camera-v1", seller.root) as device:
        yield {
            "images": signs.images,
            "classes": signs.labels,
            "seller": seller,
            "device": device.identity,
            "Path": Path,
        }


def example(package: str) -> str:
    """The first block of code in a package's docstring."""
    text = importlib.import_module(f"variegate.{package}").__doc__ or ""
    match = re.search(r"::\n\n((?:    .*\n|\n)+)", text)
    assert match is not None, f"{package} has no example"
    return textwrap.dedent(match[1])


@pytest.mark.parametrize("package", FACES)
def test_the_example_of_a_package_runs(package: str, scene: dict[str, Any]) -> None:
    exec(compile(example(package), f"{package}/__init__.py", "exec"), scene)


@pytest.mark.parametrize("package", FACES)
def test_a_package_shows_few_names_and_all_of_them_are_there(package: str) -> None:
    module = importlib.import_module(f"variegate.{package}")
    assert len(module.__all__) <= MOST_NAMES
    for name in module.__all__:
        assert getattr(module, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute"):
        module.nothing_of_this_name  # noqa: B018


def test_a_registry_is_read_without_onnx_or_torch(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from variegate.cli.main import main
from variegate.export.registry import Registry
Registry(Path("r.sqlite")).__exit__(None, None, None)
assert main(["export", "registry", "r.sqlite"]) == 0
print(sorted({"torch", "onnx", "onnxruntime"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_copies_are_sealed_without_torch() -> None:
    program = "import sys, variegate.cli.export_copies; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
