"""Every target by name, and one with a planted mistake."""

from __future__ import annotations

from assurance.fuzz import attest_targets, device_targets, keys_targets, live_targets, serve_targets, wire_targets
from assurance.fuzz.target import Target, pure, verdict
from variegate.keys.manifest import Manifest

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (keys_targets, attest_targets, serve_targets, device_targets, wire_targets, live_targets)
    for target in module.TARGETS
}


def _planted(data: bytes) -> str:
    def call() -> None:
        if Manifest.from_bytes(data).policy.burst > 1 << 20:
            raise KeyError("planted")

    return verdict(call)


PLANTED = Target(
    name="planted",
    opened=pure(_planted),
    seeds=TARGETS["manifest"].seeds,
    mutate=TARGETS["manifest"].mutate,
)
"""A mistake that only a well-formed manifest reaches: a fuzzer that does not find it finds nothing else either."""
