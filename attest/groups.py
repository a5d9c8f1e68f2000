"""Names of groups of protections, for the policies of devices and verifiers.

`host` means that the machine stops root from reaching other processes. One gap is enough for root, so only the whole
group is of use.
"""

from __future__ import annotations

from collections.abc import Iterable

HOST = "host"
HOST_PROTECTIONS = (
    "host-ptrace",
    "host-lockdown",
    "host-modules",
    "host-kexec",
    "host-rights",
    "host-sysctl",
    "host-bpf",
    "host-perf",
    "host-swap",
    "host-core",
)
"""The protections of its machine that every device reports, in this order; `isolation.machine` measures it."""
_PREFIX = f"{HOST}-"


def of_host(name: str) -> bool:
    """Whether a protection belongs to the group `host`."""
    return name.startswith(_PREFIX)


def members(required: Iterable[str], present: Iterable[str]) -> tuple[str, ...]:
    """Spells groups out.

    Args:
        required: Names, `host` perhaps among them.
        present: Names that a device reports.

    Returns:
        Names of single protections, none twice. `host` becomes all of `HOST_PROTECTIONS`, so that a device cannot avoid
        one by not reporting it, and any others of the group that it reports: a newer device may have more.
    """
    more = [name for name in present if of_host(name)]
    protections: list[str] = []
    for name in required:
        protections += (*HOST_PROTECTIONS, *more) if name == HOST else (name,)
    return tuple(dict.fromkeys(protections))
