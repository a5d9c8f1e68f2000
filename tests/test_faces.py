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

import numpy as np
import pytest

from tests.test_forensics import row
from variegate import export
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.world.dataset import batch
from variegate.device_sim.world.network import load_signnet
from variegate.export.intake.base import from_torch
from variegate.export.registry import Registry
from variegate.keys.artefact import Artefact
from variegate.keys.seller import Seller

FACES = ("keys", "export", "runtime", "device_sim", "attack", "forensics")
MOST_NAMES = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples speak of: a model's file, a seller and a release, devices with copies, and samples."""
    folder = tmp_path_factory.mktemp("scene")
    base = from_torch(load_signnet(), (3, 32, 32))
    (folder / "model.onnx").write_bytes(base.model.SerializeToString())
    signs, seller = batch(7, 0, 1000), Seller.generate()
    release = export.prepare(base, validation=(signs.images, signs.labels), name="spring")
    for name in ("car", "mine", "theirs", "own"):
        with Device.create(folder / name, "camera-v1", seller.root) as device:
            (sealed,) = export.copies(release, seller, {name: device.identity}).values()
            flash(device, Artefact.from_bytes(sealed.to_bytes()))
    with Registry(folder / "registry.sqlite") as registry:
        registry.add([row(release, "acme", 0), row(release, "bolt", 1)])
    np.savez(folder / "found.npz", sample=signs.images[:2], label=[1, 2], clean_label=[3, 4])
    return {"folder": folder, "signs": signs, "seller": seller, "release": release, "artefact": sealed.to_bytes()}


@pytest.fixture
def scene(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The same as names, in the folder of all files."""
    monkeypatch.chdir(made["folder"])
    signs = made["signs"]
    with (
        Device.open(made["folder"] / "own") as device,
        Registry(made["folder"] / "registry.sqlite", read_only=True) as registry,
    ):
        yield {
            "Path": Path,
            "images": signs.images[:400],
            "classes": signs.labels[:400],
            "image": signs.images[0],
            "seller": made["seller"],
            "release": made["release"],
            "registry": registry,
            "device": device.identity,
            "identity": device.identity.to_json(),
            "artefact": Artefact.from_bytes(made["artefact"]),
            "platform": device,
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
