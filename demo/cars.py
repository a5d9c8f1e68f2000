"""Three buyers and three cars: export, seal, flash, drive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from variegate.attack.oracles.local import LocalBase
from variegate.attack.oracles.port import PortOracle
from variegate.device_sim.device import Device
from variegate.device_sim.flash import FlashReport, flash
from variegate.device_sim.world.dataset import Batch, batch
from variegate.device_sim.world.network import load_signnet
from variegate.export.calibrate import Calibration
from variegate.export.delivery import copies
from variegate.export.intake.base import Base
from variegate.export.preparation import base_of, prepare
from variegate.export.release import Release
from variegate.export.rewriters import Qim
from variegate.export.sealing import SealedCopy, Terms
from variegate.keys.errors import MisuseError, RefusedError
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller
from variegate.runtime.port import LabelPort

BUYERS = {"A": "Alice", "B": "Bob", "C": "Carol"}
"""Car -> buyer. The attacker is A's."""
DEVICE_CLASS = "car-v1"
ALLOWED_POINTS = 0.5
"""Most accuracy that a copy may cost, in percentage points."""
_VALIDATION = 1500
_STREAM = 1000  # the streams below are the training's and the test's


@dataclass(frozen=True)
class Model:
    """The seller's export.

    Attributes:
        base: The base.
        calibration: How the rewriter was chosen.
        rewriter: The choice.
        release: The release of the copies.
    """

    base: Base
    calibration: Calibration
    rewriter: Qim
    release: Release

    @cached_property
    def bare(self) -> LocalBase:
        """The base as it is, as a device that gives its labels."""
        return LocalBase(self.base)


@dataclass(frozen=True, kw_only=True)
class Car:
    """One car on the road.

    Attributes:
        name: "A", "B" or "C".
        buyer: Its owner, as in the manifest.
        device: The device in it.
        enclave: The enclave on the device.
        sealed: Bytes of the file that was flashed.
        report: The report of the flash.
    """

    name: str
    buyer: str
    device: Device
    enclave: LabelPort
    sealed: int
    report: FlashReport

    @cached_property
    def labels(self) -> PortOracle:
        """Its owner's interface: ask for labels."""
        return PortOracle(self.enclave)


@dataclass(frozen=True)
class Refused:
    """A copy for one car, flashed on another.

    Attributes:
        outward: The device's public answer.
        inner: The reason in its inner log.
    """

    outward: str
    inner: str


@dataclass(frozen=True)
class Fleet:
    """The cars, and the attempt with the wrong car.

    Attributes:
        cars: In the order of `BUYERS`.
        wrong_car: The refusal of B's copy on A's car.
    """

    cars: tuple[Car, ...]
    wrong_car: Refused


def frames(seed: int, start: int, count: int) -> Batch:
    """Frames of the demo's own stream."""
    return batch(_STREAM + seed, start, count)


def export_model(seed: int) -> Model:
    """Exports the packaged network and chooses the rewriter on fresh frames."""
    validation = frames(seed, 0, _VALIDATION)
    base = base_of(load_signnet(), (3, 32, 32))
    release = prepare(base, validation=(validation.images, validation.labels), loss=ALLOWED_POINTS, name="demo")
    rewriter = release.template.rewriter
    if not isinstance(rewriter, Qim) or release.calibration is None:
        raise MisuseError("the demo traces by attractors: it needs a QIM rewriter")
    return Model(base, release.calibration, rewriter, release)


@contextmanager
def fleet(model: Model, seller: Seller, folder: Path, budget: int) -> Iterator[Fleet]:
    """Makes devices in `folder`, seals a copy for each, flashes and boots them; turns them off at the end.

    Args:
        model: The base.
        seller: Holder of the keys.
        folder: An existing folder.
        budget: Labels that each car may ever give.
    """
    with ExitStack() as stack:
        devices = {
            name: stack.enter_context(Device.create(folder / f"car-{name}", DEVICE_CLASS, seller.root))
            for name in BUYERS
        }
        buyers = {BUYERS[name]: device.identity for name, device in devices.items()}
        sealed = copies(model.release, seller, buyers, Terms(vendor="Variegate demo", policy=Policy(budget=budget)))
        cars = tuple(_deliver(name, device, sealed[BUYERS[name]], folder) for name, device in devices.items())
        yield Fleet(cars, _flash_wrong(devices["A"], folder / "B.vgc"))


def _deliver(name: str, device: Device, sealed: SealedCopy, folder: Path) -> Car:
    path = folder / f"{name}.vgc"
    path.write_bytes(sealed.to_bytes())
    report = flash(device, path)
    return Car(
        name=name,
        buyer=BUYERS[name],
        device=device,
        enclave=device.boot(),
        sealed=path.stat().st_size,
        report=report,
    )


def _flash_wrong(device: Device, path: Path) -> Refused:
    try:
        flash(device, path)
    except RefusedError as error:
        return Refused(error.message, device.log()[-1].partition(" ")[2])
    return Refused("flashed", "the device took another car's copy")
