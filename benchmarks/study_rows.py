"""Part of `benchmarks.study`: what its studies found, a row for each pair."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CosineRow:
    """One pair of copies at one image.

    Attributes:
        hypothesis: "H1", "H2" or "H3" (`study_gradients`).
        fleet: The copies' kind.
        cosine: Of their loss gradients.
    """

    hypothesis: str
    fleet: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class ReplicationRow:
    """One sample shown to one victim.

    Attributes:
        fleet: The copies' kind.
        method: How the sample was made.
        colluders: Copies that the attackers own.
        image: Index in the data.
        victim: Copy in the fleet.
        fooled: Whether the victim answers the sample with another class than the image's own.
        clean_right: Whether victim and colluders all read the clean image rightly.
        l2: Distance of the frame shown to the clean one, pixels in 0..1.
    """

    fleet: str
    method: str
    colluders: int
    image: int
    victim: int
    fooled: bool
    clean_right: bool
    l2: float
