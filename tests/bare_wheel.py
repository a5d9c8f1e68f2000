"""The wheel in empty environments: a device is made, flashed and asked, without torch or onnx.

    python tests/bare_wheel.py [--extras]

Builds the wheel and installs it alone: with the versions of `constraints.txt` for this interpreter, and with the newest
that there are for every other supported one that is to be had. The installed command opens a copy that this environment
sealed. With `--extras` it installs the extras instead, one after another and as a user would, without the constraint
file, and takes a copy to its first label after each. Not a pytest module: it needs environments of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from testbed import bases  # noqa: E402
from testbed.artefacts import CLASS, frames, manifest_for, seal_for, tiny_payload  # noqa: E402
from variegate.keys import component  # noqa: E402
from variegate.keys.envelope import SealedKeys  # noqa: E402
from variegate.keys.public_identity import DevicePublic  # noqa: E402
from variegate.keys.seller import Seller  # noqa: E402
from variegate.runtime.engine import Engine  # noqa: E402
from variegate.runtime.opening import Copy  # noqa: E402

FORBIDDEN = ("torch", "onnx", "onnxsim", "onnxscript", "PIL")
SUPPORTED = ("3.11", "3.12", "3.13")
EXTRAS = ("serve", "hsm", "tpm", "seller", "demo", "redteam", "completion")
"""In this order into one environment: each adds to the ones before."""
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
    """Builds, then installs and asks in each environment."""
    with tempfile.TemporaryDirectory(prefix="variegate-") as name:
        folder = Path(name)
        # setuptools builds inside of the source tree: give it a copy, so that nothing is left behind.
        unwanted = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", "demo-output")
        shutil.copytree(REPOSITORY, folder / "source", symlinks=True, ignore=unwanted)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", folder / "source", folder=folder)
        (wheel,) = (folder / "dist").glob("*.whl")
        if "--extras" in sys.argv[1:]:
            extras(folder, wheel)
            return
        for version in SUPPORTED:
            bare(folder / version, wheel, version)


def bare(folder: Path, wheel: Path, version: str) -> None:
    """The wheel alone under one interpreter."""
    own = version == f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = sys.executable if own else found(version)
    if interpreter is None:
        print(f"bare wheel: there is no Python {version} here")
        return
    folder.mkdir()
    run(interpreter, "-m", "venv", "empty", folder=folder)
    constraint = ("--constraint", REPOSITORY / "constraints.txt") if own else ()
    installed(folder, *constraint, wheel)
    program = f"import importlib.util as u; print([m for m in {FORBIDDEN!r} if u.find_spec(m)])"
    if (brought := run(folder / "empty/bin/python", "-c", program, folder=folder).strip()) != "[]":
        sys.exit(f"the bare installation brings {brought}")
    provisioned(folder)
    count = labelled(folder)
    print(f"bare wheel: Python {version} flashed and answered {count} frames, without {', '.join(FORBIDDEN)}")


def extras(folder: Path, wheel: Path) -> None:
    """Each extra, with the newest versions that it allows."""
    run(sys.executable, "-m", "venv", "empty", folder=folder)
    # A seller chooses the build of torch before anything else asks for one.
    pinned = (REPOSITORY / "constraints.txt").read_text().splitlines()
    torch = next(line for line in pinned if line.startswith("torch=="))
    for extra in EXTRAS:
        if extra == "tpm" and shutil.which("pkg-config") is None:
            print("extras: tpm needs libtss2-dev and pkg-config")
            continue
        if extra == "seller":
            installed(folder, torch)
        installed(folder, f"variegate[{extra}] @ {wheel.as_uri()}")
        if extra == EXTRAS[0]:
            provisioned(folder)
        labelled(folder)
        if extra == "seller":
            sold(folder)
        print(f"extras: {extra} installed, first labels answered")


def found(version: str) -> str | None:
    """An interpreter of this version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
    return next((place for place in places if place and works(place)), None)


def works(interpreter: str) -> bool:
    """Whether an interpreter starts: a shim may stand where none is chosen."""
    return subprocess.run([interpreter, "-m", "venv", "-h"], check=False, capture_output=True).returncode == 0


def installed(folder: Path, *what: str | Path) -> None:
    """Installs into the environment."""
    run(folder / "empty/bin/python", "-m", "pip", "install", "--quiet", *what, folder=folder)


def provisioned(folder: Path) -> None:
    """Makes a seller and a device, with the installed command."""
    (folder / "passphrase").write_text(PASSPHRASE)
    (folder / "passphrase").chmod(0o600)
    command = folder / "empty/bin/variegate"
    run(command, "keys", "generate", "seller", "--out", "seller.key", folder=folder)
    run(command, "keys", "root", "seller.key", "--out", "seller.root", folder=folder)


def labelled(folder: Path) -> int:
    """Seals a copy here for a new device, flashes it and asks it, with the installed command; how many frames."""
    command = folder / "empty/bin/variegate"
    shutil.rmtree(folder / "car", ignore_errors=True)
    (folder / "car.json").unlink(missing_ok=True)
    run(command, "device", "new", "car", "--class", CLASS, "--root", "seller.root", folder=folder)
    run(command, "device", "identity", "car", "--out", "car.json", folder=folder)
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
        sys.exit(f"the installation answers {answered}, expected {expected}")
    return len(answered)


def sold(folder: Path) -> None:
    """From an ONNX file to the first label, all with the installed command."""
    command = folder / "empty/bin/variegate"
    (folder / "model.onnx").write_bytes(bases.base(folder).model.SerializeToString())
    np.save(folder / "images.npy", bases.images(4))
    run(command, "export", "prepare", "model.onnx", "--rewriter", "permutation", "--out", "release", folder=folder)
    shutil.rmtree(folder / "car")
    (folder / "car.json").unlink()
    run(command, "device", "new", "car", "--class", CLASS, "--root", "seller.root", folder=folder)
    run(command, "device", "identity", "car", "--out", "car.json", folder=folder)
    order = ("--seller", "seller.key", "--buyer", "acme", "--device", "car.json", "--out", "copies")
    run(command, "export", "copy", "release", *order, folder=folder)
    (sealed,) = (folder / "copies").glob("*.vgc")
    run(command, "device", "flash", "car", sealed, folder=folder)
    run(command, "device", "classify", "car", "images.npy", folder=folder)


if __name__ == "__main__":
    main()
