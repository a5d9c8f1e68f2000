"""Device images for tests: a real car over a real TPM, built and booted under QEMU."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.artefacts import CLASS, seal_for
from testbed.devices import workplace
from testbed.swtpm import PROGRAM, software_tpm
from testbed.tools import skip_without
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import host_for
from variegate.device_sim.image import Machine, build
from variegate.device_sim.image.tools import BOOTING, BUILDING, missing
from variegate.isolation.policy import DevicePolicy
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller


def skip_without_images() -> None:
    """Skips the module that calls it where images cannot be made and booted."""
    packages = [*missing(BUILDING), *missing(BOOTING)]
    skip_without(
        swtpm=PROGRAM,
        tpm2_pytss=importlib.util.find_spec("tpm2_pytss"),
        **{name.replace("-", "_"): None for name in packages},
    )


@dataclass(frozen=True)
class Car:
    """An image of a car that was made, flashed and turned off.

    Attributes:
        image: The image's folder.
        tpm_state: State of its TPM.
        identity: The car's public identity.
        shell: Where a boot may put root's shell.
    """

    image: Path
    tpm_state: Path
    identity: DevicePublic
    shell: Path

    def booted(self, *, shell: bool = False) -> Machine:
        """The machine, powered on."""
        return Machine(self.image, self.tpm_state, port=free_port(), shell=self.shell if shell else None)


@contextmanager
def built(*, policy: DevicePolicy | None = None, locked: bool = True, budget: int = 1000) -> Iterator[Car]:
    """A car's image with a root shell."""
    flashing = DevicePolicy()
    seller = Seller.generate()
    with workplace() as place, software_tpm() as tpm:
        made = Device.create(place / "car", CLASS, seller.root, tpm=tpm.tcti, policy=flashing, host=host_for(flashing))
        with made as device:
            flash(device, seal_for(device.identity, seller.signer, policy=Policy(budget=budget)))
            identity = device.identity
        with chdir(place):  # by relative names, as people type them
            build(Path("car"), Path("image"), policy=policy, root_shell=True, locked=locked)
        tpm.kill()
        shutil.copytree(tpm.folder / "state", place / "tpm")
        yield Car(place / "image", place / "tpm", identity, place / "shell")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
