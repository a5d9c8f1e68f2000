"""The platform's services as the enclave calls them, over the socket."""

from __future__ import annotations

import mmap
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from variegate.isolation import wire
from variegate.isolation.policy import DevicePolicy
from variegate.isolation.wire import Kind, Lost
from variegate.keys.errors import MisuseError, VariegateError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.signing import SellerRoot
from variegate.runtime.admission import SECURITY_COUNTER, SEQUENCE
from variegate.runtime.enclave import Protection, ProtectionState


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that an enclave gets at its start.

    Attributes:
        policy: The device's policy, as measured.
        ueid: 33 bytes.
        device_class: Kind of device.
        root: The seller's public keys to hold artefacts against.
        measurements: The measurements before the launch.
        boots: Times the device was booted.
        launches: Times an enclave was started for this copy since that boot, this one included.
        time_ns: Unix time, nanoseconds.
        security: The security counter.
        used: Labels charged in the copy's epoch.
        held: The supervisor's protections of this process.
        envelope: The envelope to open.
    """

    policy: DevicePolicy
    ueid: bytes
    device_class: str
    root: SellerRoot
    measurements: Mapping[str, bytes]
    boots: int
    launches: int
    time_ns: int
    security: int
    used: int
    held: tuple[Protection, ...]
    envelope: bytes = field(repr=False)

    def to_values(self) -> list[object]:
        """The values of `START`."""
        return [
            self.policy.to_toml(),
            self.ueid,
            self.device_class,
            self.root.to_bytes(),
            [[name, value] for name, value in sorted(self.measurements.items())],
            self.boots,
            self.launches,
            self.time_ns,
            self.security,
            self.used,
            protections_to_values(self.held),
            self.envelope,
        ]

    @classmethod
    def of(cls, values: list[Any]) -> Settings:
        """Reads `to_values`.

        Raises:
            Lost: They are no settings.
        """
        match values:
            case [
                bytes(policy),
                bytes(ueid),
                str(device_class),
                bytes(root),
                [*measurements],
                int(boots),
                int(launches),
                int(time_ns),
                int(security),
                int(used),
                [*held],
                bytes(envelope),
            ]:
                return cls(
                    policy=DevicePolicy.from_toml(policy),
                    ueid=ueid,
                    device_class=device_class,
                    root=SellerRoot.from_bytes(root),
                    measurements=_measurements_of(measurements),
                    boots=boots,
                    launches=launches,
                    time_ns=time_ns,
                    security=security,
                    used=used,
                    held=protections_of(held),
                    envelope=envelope,
                )
        raise Lost("start has other settings")


def _measurements_of(values: list[Any]) -> Mapping[str, bytes]:
    measurements = {}
    for value in values:
        match value:
            case [str(name), bytes(digest)]:
                measurements[name] = digest
            case _:
                raise Lost("packet holds no measurements")
    return measurements


def protections_to_values(protections: tuple[Protection, ...]) -> list[list[str]]:
    """Protections as plain values."""
    return [[p.name, str(p.state), p.reason] for p in protections]


def protections_of(values: list[Any]) -> tuple[Protection, ...]:
    """Reads `protections_to_values`.

    Raises:
        Lost: They are none.
    """
    try:
        return tuple(Protection(str(name), ProtectionState(state), str(reason)) for name, state, reason in values)
    except (TypeError, ValueError):
        raise Lost("packet holds no protections") from None


class PlatformClient:
    """The device as the enclave sees it (`runtime.platform.Platform`).

    Time and the security counter come with every query. Labels are counted on the other side of the socket, before
    their frames come: this side is told how many, and cannot change it.
    """

    def __init__(self, channel: socket.socket, settings: Settings, identity: mmap.mmap) -> None:
        self.settings = settings
        self._channel = channel
        self._identity = identity
        self._now = settings.time_ns / wire.NS
        self._security = settings.security
        self._used = settings.used

    def update(self, now: float, security: int, used: int = 0) -> None:
        """Takes the values that came with a question: Unix time in seconds, the security counter, labels charged."""
        self._now = now
        self._security = max(security, self._security)
        self._used = max(used, self._used)

    @property
    def ueid(self) -> bytes:
        """33 bytes, unique."""
        return self.settings.ueid

    @property
    def device_class(self) -> str:
        """Kind of device."""
        return self.settings.device_class

    @property
    def root(self) -> SellerRoot:
        """The seller's public keys, against which the copy is checked."""
        return self.settings.root

    def identity(self) -> DeviceIdentity:
        """The device's private keys, read again: call it only in a process that ends.

        Raises:
            RefusedError: `KEY`, when the chip holds no identity.
        """
        return DeviceIdentity.from_bytes(self._identity[:])

    def forget_identity(self) -> None:
        """Closes the way to the device's private keys."""
        self._identity.close()

    def unwrap(self, sealed: bytes, info: bytes) -> bytes:
        """Opens HPKE ciphertext with the device's key.

        Raises:
            RefusedError: `SEALED`.
        """
        return self.identity().unwrap(sealed, info)

    def counter(self, name: str) -> int:
        """Value of a monotonic counter that an enclave is told: security, and labels charged.

        The supervisor itself checks sequence numbers at each query.
        """
        if name == SECURITY_COUNTER:
            return self._security
        return 0 if name.startswith(SEQUENCE) else self._used

    def reserve(self, name: str, least: int, most: int, limit: int) -> int:
        """Nothing is reserved from here.

        Raises:
            MisuseError: Always.
        """
        del name, least, most, limit
        raise MisuseError("the supervisor counts labels")

    def confirmed_as(self, envelope: bytes) -> bool:
        """True: the supervisor has checked it with the chip before the launch."""
        del envelope
        return True

    def now(self) -> float:
        """Unix time in seconds, as of the last query."""
        return self._now

    def measurements(self) -> Mapping[str, bytes]:
        """The measurements before the launch."""
        return self.settings.measurements

    def record(self, event: str, detail: str) -> None:
        """Writes a line of the device's inner log."""
        self.call("record", event, detail)

    def challenge(self) -> bytes:
        """As `attest.release.Exchange.challenge`."""
        return bytes(self.call("challenge"))

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """As `attest.release.Exchange.release`."""
        return bytes(self.call("release", token, envelope))

    def call(self, name: str, *arguments: object) -> Any:
        """Asks the platform.

        Returns:
            Its answer.

        Raises:
            VariegateError: An error of the platform.
            Lost: The supervisor is gone.
        """
        wire.send(self._channel, wire.pack(Kind.CALL, name, list(arguments)))
        kind, values = wire.unpack(wire.receive(self._channel))
        if kind == Kind.FAILED:
            raise wire.error_of(values)
        if kind != Kind.ANSWER or len(values) != 1:
            raise Lost("no answer")
        return values[0]


CALLS: Mapping[str, tuple[type, ...]] = {
    "record": (str, str),
    "challenge": (),
    "release": (bytes, bytes),
}
"""The calls that an enclave may make to the platform, with their types."""


def answer(platform: object, values: list[Any]) -> bytes:
    """Carries out a call of an enclave, whose request is not trusted.

    Args:
        platform: Has a method for each of `CALLS`, as `enclave_platform.EnclavePlatform`.
        values: Of the packet `CALL`.

    Returns:
        The packet to send back.

    Raises:
        Lost: It is no call.
    """
    match values:
        case [str(name), [*arguments]] if name in CALLS and tuple(map(type, arguments)) == CALLS[name]:
            try:
                return wire.pack(Kind.ANSWER, getattr(platform, name)(*arguments))
            except VariegateError as error:
                return wire.failure(error)
            except (ArithmeticError, ValueError, TypeError) as error:  # of values that no sound enclave sends
                raise Lost("enclave asks with values that are not valid") from error
    raise Lost("enclave asks for an unknown call")
