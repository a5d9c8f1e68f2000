"""Counts connections, in total and by address, and refuses them before a byte is read."""

from __future__ import annotations

import hashlib
import ipaddress
from collections import Counter
from collections.abc import Callable

from variegate.serve.limits import ServeLimits

_IPV6_SITE = 64


def peer_of(address: str) -> str:
    """The name of a peer by its address: IPv4 as it is, IPv6 by its /64, of which one host has all."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, _IPV6_SITE), strict=False))
    return str(ip)


def peer_of_certificate(certificate: bytes) -> str:
    """The name of a peer by its certificate (DER)."""
    return f"certificate {hashlib.sha256(certificate).hexdigest()}"


class Permit:
    """The right of one connection to be here. Released once, however often that is asked for.

    Attributes:
        peer: The peer whose shares its queries count against; a certificate may replace the address.
        on_lost: Called when the connection goes away while a query waits; set by the code that asks the query.
    """

    __slots__ = ("_release", "on_lost", "peer")

    def __init__(self, peer: str, release: Callable[[], None]) -> None:
        self.peer = peer
        self.on_lost: Callable[[], None] | None = None
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Gives the place back."""
        if self._release is not None:
            self._release()
            self._release = None


class Doorkeeper:
    """Counts connections. For the thread of the loop only."""

    def __init__(self, limits: ServeLimits) -> None:
        self._total, self._each = limits.max_connections, limits.max_peer_connections
        self._by_peer: Counter[str] = Counter()
        self.inside = 0

    def admit(self, peer: str) -> Permit | str:
        """A permit, or why there is none: "full" or "peer"."""
        if self.inside >= self._total:
            return "full"
        if self._by_peer[peer] >= self._each:
            return "peer"
        self.inside += 1
        self._by_peer[peer] += 1

        def release() -> None:
            self.inside -= 1
            self._by_peer[peer] -= 1
            if not self._by_peer[peer]:
                del self._by_peer[peer]

        return Permit(peer, release)
