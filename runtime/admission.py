"""Admission: every check of an envelope that needs no secret, in a fixed order.

Signatures, device, class, expiry, counter, measurements. Flashing and opening share these rules, so that an image that
was flashed also boots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from variegate.keys.envelope import Envelope, open_envelope
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.manifest import Manifest
from variegate.runtime.platform import Platform

T = TypeVar("T")

SECURITY_COUNTER = "security"
"""Name of the counter behind rollback protection."""
SEQUENCE = "sequence."
"""Begins the names of the counters behind it among images of one security counter."""


def sequence_counter(security_counter: int) -> str:
    """Name of the counter of the highest sequence number that was confirmed under a security counter.

    Each security counter has its own, so that confirming an image under a higher one does not change the bound of the
    old image: a power cut between the two leaves both bounds intact.
    """
    return f"{SEQUENCE}{security_counter}"


def admit(envelope: bytes, platform: Platform) -> Envelope:
    """Checks an envelope for this device.

    Args:
        envelope: Hostile bytes.
        platform: This device.

    Returns:
        The checked envelope.

    Raises:
        RefusedError: With the true class; wrap the call in `uniform` before it goes outwards.
    """
    opened = open_envelope(envelope, platform.root)
    manifest = opened.manifest
    if manifest.ueid != platform.ueid:
        raise RefusedError(Refusal.WRONG_DEVICE, "artefact is for another device")
    if manifest.device_class != platform.device_class:
        raise RefusedError(Refusal.WRONG_CLASS, "artefact is for another class of device")
    check_current(manifest, platform)
    if _is_numbered_twice(envelope, manifest, platform):
        message = f"another artefact has security counter {manifest.security_counter} and sequence {manifest.sequence}"
        raise RefusedError(Refusal.ROLLED_BACK, f"{message}, and this device has confirmed it", hint=_AGAIN)
    if manifest.measurements and not manifest.measurements.items() <= platform.measurements().items():
        raise RefusedError(Refusal.SELF_TEST, "device does not measure what the artefact asks for")
    return opened


def check_current(manifest: Manifest, platform: Platform) -> None:
    """Holds clock and counters against the manifest: when it is opened, and again at every query.

    Raises:
        RefusedError: `EXPIRED` past `not_after` and the grace, or `ROLLED_BACK`.
    """
    if manifest.not_after is not None and platform.now() > manifest.not_after + manifest.policy.grace_s:
        raise RefusedError(Refusal.EXPIRED, "artefact has expired")
    if manifest.security_counter < platform.counter(SECURITY_COUNTER):
        raise _older("security counter", manifest.security_counter, platform.counter(SECURITY_COUNTER))
    confirmed = platform.counter(sequence_counter(manifest.security_counter))
    if manifest.sequence < confirmed and not manifest.allow_downgrade:
        raise _older("sequence", manifest.sequence, confirmed)


def _is_numbered_twice(envelope: bytes, manifest: Manifest, platform: Platform) -> bool:
    """Whether another artefact with the same two numbers was confirmed: nothing tells which of them is older."""
    return (
        manifest.security_counter == platform.counter(SECURITY_COUNTER)
        and manifest.sequence == platform.counter(sequence_counter(manifest.security_counter))
        and not manifest.allow_downgrade
        and not platform.confirmed_as(envelope)
    )


_AGAIN = "seal it again under a higher security counter"


def _older(what: str, number: int, confirmed: int) -> RefusedError:
    # For the inner log alone, so it may say what the seller has to change: their registry may be lost.
    message = f"artefact is older than what this device has confirmed: {what} {number}, confirmed {confirmed}"
    return RefusedError(Refusal.ROLLED_BACK, message, hint=_AGAIN)


def uniform(platform: Platform, action: str, call: Callable[[], T]) -> T:
    """Calls, and lets only one answer out when something is refused; the inner log has the reason.

    Args:
        platform: Keeps the inner log.
        action: The action, for that log.
        call: Does it.

    Returns:
        What `call` returns.

    Raises:
        RefusedError: `ARTEFACT`, in place of any other refusal.
    """
    try:
        return call()
    except RefusedError as error:
        reason = f"{action}: {error.refusal}: {error.message}"
    # Outside of the handler, so that the answer does not carry the reason as its context.
    platform.record("refused", reason)
    raise RefusedError(
        Refusal.ARTEFACT,
        "artefact refused",
        hint="the device's log has the reason, which is not public",
    )
