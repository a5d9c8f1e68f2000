"""A real device to attack: a sealed copy, flashed, served by the real command in namespaces of its own.

The supervisor and its attackers run in a PID and a mount namespace: attackers see no other process of this machine, and
their mounts are invisible to others.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assurance.root.needles import secrets_of
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import host_for
from variegate.export.intake.base import Base
from variegate.export.release import make_release
from variegate.export.rewriters import Qim
from variegate.export.sealing import CopyOrder, Terms, seal_copies
from variegate.isolation.policy import DevicePolicy
from variegate.keys.artefact import Artefact
from variegate.keys.errors import DeviceError
from variegate.keys.identity import DeviceIdentity, DevicePublic
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller

BUDGET = 20_000
POLICY = DevicePolicy(restarts=200)
"""Enclaves are killed on purpose, and come back."""
REWRITER = Qim(grid=(4, 4), squared=True)
_PATIENCE_S = 60.0
_BUYER = "attacked"


@dataclass(frozen=True)
class Made:
    """A device that is off.

    Attributes:
        folder: Of the device.
        identity: Its public identity.
        secrets: Windows that must not be read, as they lie in memory.
        signs: The secrets that activations reveal: the signs of the messages, (classes, C, H / gh, W / gw), +1 and -1.
        grid: Of the messages.
    """

    folder: Path
    identity: DevicePublic
    secrets: list[bytes] = field(repr=False)
    signs: NDArray[np.int8] = field(repr=False)
    grid: tuple[int, int]


def made(
    folder: Path, base: Base, images: NDArray[np.uint8], policy: DevicePolicy = POLICY, tpm: str | None = None
) -> Made:
    """Makes a device and flashes a copy of `base` to it.

    Args:
        folder: A new folder for it.
        base: The base.
        images: Some, (N, C, H, W).
        policy: How its enclave is isolated.
        tpm: As `Device.create`.
    """
    release = make_release("attacked", base, REWRITER, images)
    seller = Seller.generate()
    host = host_for(policy)
    with Device.create(folder, "attacked-v1", seller.root, policy=policy, tpm=tpm, host=host) as device:
        order = CopyOrder(buyer=_BUYER, device=device.identity, epoch=0, sequence=1, security_counter=0)
        (copy,) = seal_copies(release, seller, [order], Terms(vendor="assurance", policy=Policy(budget=BUDGET)))
        flash(device, Artefact.from_bytes(copy.to_bytes()))
        with os.fdopen(device.identity_descriptor(), "rb") as file:
            identity = DeviceIdentity.from_bytes(file.read())
    seed = seller.buyer_seed(_BUYER, 0)
    found = secrets_of(release.template, seed, identity)
    return Made(folder, identity.public, found.windows, found.signs, REWRITER.grid)


@contextmanager
def served(device: Made) -> Iterator[Callable[[list[str], str], str]]:
    """Serves a device by the real command, in namespaces of its own.

    Yields:
        Runs Python there as root, with these arguments and this standard input; gives its standard output.

    Raises:
        DeviceError: It does not serve.
    """
    port = _free_port()
    serve = [sys.executable, "-m", "variegate.cli.main", "device", "serve", str(device.folder), "--port", str(port)]
    # The shell is the namespace's first process, so that the supervisor gets signals as anywhere.
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    shell = ["sh", "-c", '"$@" & wait', "sh"]
    with (device.folder.parent / "serve.log").open("wb") as log:
        outer = subprocess.Popen([*inside, *shell, *serve], stdout=log, stderr=log, cwd=device.folder.parent)  # noqa: S603
    try:
        _until_serving(outer, port, device.folder.parent / "serve.log")
        (first,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()

        def run(arguments: list[str], stdin: str) -> str:
            enter = ["nsenter", "--target", first, "--mount", "--pid", sys.executable]
            # Not checked: what it has to say is in its output, whatever its end.
            done = subprocess.run(  # noqa: S603  this very interpreter
                [*enter, *arguments], input=stdin, stdout=subprocess.PIPE, text=True, check=False, cwd="/"
            )
            return done.stdout

        yield run
    finally:
        outer.send_signal(signal.SIGKILL)
        outer.wait()


def _until_serving(outer: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until and outer.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise DeviceError("the device does not serve", hint=log.read_text("utf-8", "replace")[-500:])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
