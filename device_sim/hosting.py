"""Chooses where a device's enclave runs, by its policy file.

policy.toml   in the device's folder, beside `disk` and `fuses`; not secret; measured before every launch
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from variegate.device_sim.measure import measurements
from variegate.isolation.host import IsolatedHost
from variegate.isolation.keeper import DevicePlatform
from variegate.isolation.policy import MAX_POLICY_BYTES, DevicePolicy
from variegate.keys.artefact import Artefact
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.files import read_capped
from variegate.runtime.enclave import Enclave
from variegate.runtime.port import Host, LabelPort

POLICY_FILE = "policy.toml"


class InProcess:
    """Opens copies in the caller's process (`runtime.port.Host`): isolation and memory protection are off."""

    def __init__(self, policy: DevicePolicy) -> None:
        self.policy = policy

    def measurements(self) -> Mapping[str, bytes]:
        """The measurements of a process that runs already: its own code as it is on the disk now."""
        return {**measurements(), "policy": self.policy.digest}

    def start(self, artefact: Artefact, platform: DevicePlatform) -> LabelPort:
        """As `runtime.port.Host.start`.

        Raises:
            DeviceError: The policy is strict: in a process of the caller's no protection of a process is on.
        """
        if self.policy.strict:
            raise DeviceError(
                "the device's policy is strict: it requires an isolated enclave", hint="see policy.toml of the device"
            )
        return Enclave.open(artefact, platform)


def policy_of(folder: Path) -> DevicePolicy:
    """The policy of the device in `folder`.

    Raises:
        RefusedError: `TOO_LARGE` or `MALFORMED`, naming the key.
        MisuseError: It is not there or cannot be read: a device without its policy does not start.
    """
    return DevicePolicy.from_toml(read_capped(folder / POLICY_FILE, limit=MAX_POLICY_BYTES))


def host_for(policy: DevicePolicy) -> Host:
    """The host that a policy asks for."""
    return IsolatedHost(policy) if policy.isolation == "process" else InProcess(policy)


@contextmanager
def open_port(folder: Path | str) -> Iterator[LabelPort]:
    """Turns a device on and opens its copy, where its policy says, until the end of the block.

    Raises:
        RefusedError, MisuseError: As `policy_of`; or the copy is refused.
        DeviceError: The device does not boot.
    """
    from variegate.device_sim.device import Device  # noqa: PLC0415 - which imports this module's users

    place = Path(folder)
    with Device.open(place, host=host_of(place)) as device, device.boot() as port:
        yield port


def host_of(folder: Path) -> Host:
    """The host that the policy of the device in `folder` asks for.

    Raises:
        RefusedError, MisuseError: As `policy_of`.
    """
    if not folder.is_dir():
        raise MisuseError(f"{folder} holds no device", hint="make one with `variegate device new`")
    return host_for(policy_of(folder))
