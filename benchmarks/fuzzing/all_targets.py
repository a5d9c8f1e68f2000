"""Every target by name."""

from __future__ import annotations

from benchmarks.fuzzing import (
    attest_targets,
    device_targets,
    keys_targets,
    live_targets,
    serve_targets,
    wire_targets,
)
from benchmarks.fuzzing.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (keys_targets, attest_targets, serve_targets, device_targets, wire_targets, live_targets)
    for target in module.TARGETS
}
