"""The bare wheel in an empty environment: a device is made, flashed and asked, without torch or onnx.

    python tests/bare_wheel.py

Builds the wheel, installs it with nothing but its own dependencies, and lets the installed command open a copy that
this environment sealed. Not a pytest module: it needs an environment of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from testbed.artefacts import CLASS, frames, manifest_for, seal_for, tiny_payload  # noqa: E402
from variegate.keys import component  # noqa: E402
from variegate.keys.envelope import SealedKeys  # noqa: E402
from variegate.keys.public_identity import DevicePublic  # noqa: E402
from variegate.keys.seller import Seller  # noqa: E402
from variegate.runtime.engine import Engine  # noqa: E402
from variegate.runtime.opening import Copy  # noqa: E402

FORBIDDEN = ("torch", "onnx", "onnxsim", "onnxscript", "PIL")
PASSPHRASE = "only for this test"


def run(*command: str | Path, folder: Path) -> str:
    """Runs a command that must succeed; its standard output."""
    environment = {**os.environ, "VARIEGATE_PASSPHRASE_FILE": str(folder / "passphrase")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Builds, installs, flashes, asks."""
    with tempfile.TemporaryDirectory(prefix="variegate-") as name:
        folder = Path(name)
        (folder / "passphrase").write_text(PASSPHRASE)
        (folder / "passphrase").chmod(0o600)
        # setuptools builds inside of the source tree: give it a copy, so that nothing is left behind.
        unwanted = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", "demo-output")
        shutil.copytree(REPOSITORY, folder / "source", symlinks=True, ignore=unwanted)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", folder / "source", folder=folder)
        (wheel,) = (folder / "dist").glob("*.whl")
        venv.create(folder / "empty", with_pip=True)
        python, command = folder / "empty/bin/python", folder / "empty/bin/variegate"
        constraint = ("--constraint", REPOSITORY / "constraints.txt")
        run(python, "-m", "pip", "install", "--quiet", *constraint, wheel, folder=folder)
        found = run(
            python,
            "-c",
            f"import importlib.util as u; print([m for m in {FORBIDDEN!r} if u.find_spec(m)])",
            folder=folder,
        )
        if found.strip() != "[]":
            sys.exit(f"the bare installation brings {found.strip()}")

        run(command, "keys", "generate", "seller", "--out", "seller.key", folder=folder)
        run(command, "keys", "root", "seller.key", "--out", "seller.root", folder=folder)
        run(command, "device", "new", "car", "--class", CLASS, "--root", "seller.root", folder=folder)
        run(command, "device", "identity", "car", "--out", "car.json", folder=folder)

        # The seller's side, in this environment.
        seller = Seller.load(folder / "seller.key", PASSPHRASE)
        device = DevicePublic.from_json((folder / "car.json").read_bytes())
        keys, payload = SealedKeys(os.urandom(32), os.urandom(32)), tiny_payload()
        artefact = seal_for(device, seller.signer, payload=payload, keys=keys)
        (folder / "copy.vgc").write_bytes(artefact.to_bytes())
        shown = frames(20, seed=3)
        np.save(folder / "frames.npy", shown)

        run(command, "device", "flash", "car", "copy.vgc", folder=folder)
        lines = run(command, "device", "classify", "car", "frames.npy", folder=folder).splitlines()
        answered = [int(line.split()[-1]) for line in lines]
        _, ref = component.seal(payload.to_bytes(), keys.cek, bytes(16))
        expected = Engine(Copy.expand(payload, keys.seed, manifest_for(device, ref))).run(shown).tolist()
        if answered != expected:
            sys.exit(f"the bare installation answers {answered}, expected {expected}")
        print(f"bare wheel: flashed and answered {len(answered)} frames, without {', '.join(FORBIDDEN)}")


if __name__ == "__main__":
    main()
