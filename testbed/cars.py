"""Real devices with sealed copies, for benchmarks: sealed, flashed, booted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.export.release import Release
from variegate.export.sealing import CopyOrder, Terms, seal_copies
from variegate.keys.artefact import Artefact
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller
from variegate.runtime import Enclave

DEVICE_CLASS = "benchmark-v1"


@contextmanager
def flashed(
    release: Release, seller: Seller, buyer: str, policy: Policy | None = None, epoch: int = 0
) -> Iterator[Enclave]:
    """A new device, with this buyer's copy of the release sealed to it, flashed and booted."""
    with TemporaryDirectory(prefix="variegate-") as folder:
        device = Device.create(Path(folder) / "device", DEVICE_CLASS, seller.root)
        try:
            order = CopyOrder(buyer=buyer, device=device.identity, epoch=epoch, sequence=1, security_counter=0)
            terms = Terms(vendor="benchmark", policy=policy or Policy())
            (copy,) = seal_copies(release, seller, [order], terms)
            flash(device, Artefact.from_bytes(copy.to_bytes()))
            with device.boot() as enclave:
                assert isinstance(enclave, Enclave)
                yield enclave
        finally:
            device.close()
