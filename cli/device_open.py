"""Turns a device on for the commands of `variegate device`: isolated by its policy, and with its broker."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from variegate.attest.client import BrokerClient
from variegate.device_sim.device import Device
from variegate.device_sim.hosting import host_of
from variegate.isolation.host import Isolated
from variegate.isolation.machine import summary
from variegate.keys.errors import MisuseError
from variegate.runtime.enclave import Protection, ProtectionState
from variegate.runtime.port import LabelPort


def add_broker_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--broker` and the options of the way there, for commands that open a copy."""
    parser.add_argument("--broker", metavar="URL", help="key broker, for copies that depend on one")
    parser.add_argument("--broker-ca", type=Path, metavar="PEM", help="CA of its certificate (default: the system's)")
    parser.add_argument("--broker-cert", type=Path, metavar="PEM", help="client certificate, if one is required")
    parser.add_argument("--broker-key", type=Path, metavar="PEM", help="its key")


def open_device(args: argparse.Namespace) -> Device:
    """Turns the device in `args.folder` on.

    Raises:
        MisuseError, RefusedError, DeviceError: As `hosting.host_of`, `Device.open` and `BrokerClient`.
    """
    url = getattr(args, "broker", None)
    broker = None
    if url is not None:
        broker = BrokerClient(url, ca=args.broker_ca, certificate=args.broker_cert, key=args.broker_key)
    device = Device.open(args.folder, host=host_of(args.folder))
    device.broker = broker
    return device


def isolated(device: Device) -> Isolated:
    """Boots a device whose enclave is a process of its own; only such an enclave can sign.

    Raises:
        MisuseError: Its policy puts the enclave into this process.
        RefusedError, DeviceError: As `Device.boot`.
    """
    return as_isolated(device.boot())


def as_isolated(port: LabelPort) -> Isolated:
    """A port whose enclave can sign.

    Raises:
        MisuseError: The device's policy puts the enclave into this process.
    """
    if isinstance(port, Isolated):
        return port
    raise MisuseError(
        "only an isolated enclave signs evidence and receipts", hint='set isolation = "process" in its policy.toml'
    )


def host_line(protections: Iterable[Protection]) -> str:
    """One line on the machine below a device: whether root reaches other processes there, and what is missing."""
    host = summary(protections)
    answer = "yes" if host.state is ProtectionState.ON else f"no ({host.reason})"
    return f"{host.name}: this machine stops root from reaching other processes: {answer}"
