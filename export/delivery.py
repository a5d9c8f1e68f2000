"""Copies for some buyers without a registry, for demos, notebooks and tests. For fleets see `fleet`."""

from __future__ import annotations

import time
from collections.abc import Mapping

from variegate.export.release import Release
from variegate.export.sealing import CopyOrder, SealedCopy, Terms, seal_copies
from variegate.keys.identity import DevicePublic
from variegate.keys.seller import SellerKeys

_TERMS = Terms(vendor="seller")


def copies(
    release: Release, seller: SellerKeys, buyers: Mapping[str, DevicePublic], terms: Terms = _TERMS
) -> dict[str, SealedCopy]:
    """Seals a copy for each buyer's device; its numbers are the time in microseconds, as a registry gives them.

    Args:
        release: The release.
        seller: Holder of the keys.
        buyers: Buyer id -> the device's public identity.
        terms: Vendor, budget, rate and expiry of all of them.

    Raises:
        MisuseError: Terms or buyers do not fit.
    """
    now = time.time_ns() // 1000
    orders = [
        CopyOrder(buyer=buyer, device=device, epoch=0, sequence=now, security_counter=now)
        for buyer, device in buyers.items()
    ]
    return dict(zip(buyers, seal_copies(release, seller, orders, terms), strict=True))
