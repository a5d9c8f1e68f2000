"""The interface of an attack: a generator for one image that yields points and receives which of them fool the device.

    def search(self, problem):
        fooled = yield points      # float32 (n, l) in [0, 1]; bool (n,) comes back

So an attack is written for one image, step by step, as in its paper; the driver runs many at once and fills batches
from all waiting points. An attack sees no oracle, no count and no other image, and so depends on none of them. All its
random numbers come from `problem.rng`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
"""(n, l), flat images in [0, 1]."""
Answers = NDArray[np.bool_]
"""(n,), whether a point is answered as the attack wants it."""
Search = Generator[Points, Answers, None]
Norm = Literal["l2", "linf"]
STARTS = 8
"""Pictures of other classes that a search may start from, where nothing else is said."""
Result = Literal["best", "iterate"]
"""What counts in the end: the best of all points asked (profile `corrected`), or the attack's own last iterate, as
toolkits return it (profile `art-1.20`)."""


@dataclass(kw_only=True)
class Problem:
    """The input of one search.

    Attributes:
        clean: The clean image, float32 (l,) in [0, 1].
        shape: (C, H, W), with l = C * H * W.
        label: The device's label of the clean image.
        target: The class wanted; None for any other than `label`.
        starts: Pictures that may be answered as wanted, float32 (n, l), n >= 0: of other classes or of the target.
        queries: Most labels of the search, including the final check: one less is answered.
        rng: All randomness.
        dtype: Of the device's frames, "float32" or "uint8", told by the driver: on a device of bytes, points are
            rounded to whole grey levels before they are asked.
        kept: The attack's own iterate, if it told one (`keep`).
    """

    clean: NDArray[np.float32]
    shape: tuple[int, int, int]
    label: int
    target: int | None = None
    starts: Points
    queries: int
    rng: np.random.Generator
    dtype: str = field(default="float32", init=False)
    kept: NDArray[np.float32] | None = field(default=None, init=False)

    def keep(self, point: NDArray[np.float32]) -> None:
        """Tells the iterate that the attack would return if it ended here.

        It is the result only in profiles that mirror another toolkit; otherwise the best point asked is.
        """
        self.kept = point


class Attack(Protocol):
    """One configured attack. Frozen dataclasses: their fields are the keys of a campaign's file.

    Attributes:
        name: Of the algorithm; also its key in a campaign's file.
        norm: In which distances are measured and improved.
        result: What counts in the end.
    """

    name: ClassVar[str]

    @property
    def norm(self) -> Norm: ...  # noqa: D102
    @property
    def result(self) -> Result: ...  # noqa: D102

    def search(self, problem: Problem) -> Search:
        """Walks from the image or towards it until it ends by itself or is closed."""
        ...


def distance(points: NDArray[np.float32], clean: NDArray[np.float32], norm: Norm) -> NDArray[np.float64]:
    """Distances of points (n, l) to the clean image (l,), pixels in 0..1."""
    away = points - clean
    out: NDArray[np.float64]
    if norm == "linf":
        out = np.abs(away).max(axis=1).astype(np.float64)
    else:
        out = np.sqrt(np.einsum("ij,ij->i", away, away, dtype=np.float64))
    return out


def seeded(*parts: str | int) -> np.random.Generator:
    """A generator that depends on these words alone, and not on batch, worker or machine.

    Args:
        parts: For instance campaign seed, attacker, image and attack.
    """
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.random.default_rng(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32))
