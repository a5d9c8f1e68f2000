"""The Adversarial Robustness Toolbox 1.20.1 on numpy 2: necessary patches, and hooks that observe it.

ART is imported only here. Its algorithms are unchanged: each patch below either restores the behaviour of numpy 1 or
makes a run repeatable, and gives its reason.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from art.attacks.evasion import BoundaryAttack, GeoDA, HopSkipJump
from art.estimators.classification import BlackBoxClassifierNeuralNetwork
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle

Trace = list[tuple[int, float]]
"""(queries so far, L2 distance of the iterate), in order."""


class SpentError(Exception):
    """The cap on queries is reached; thrown through ART's loops, which have no other way out."""


class Watched:
    """Counts ART's queries for one image and notes its iterates.

    Attributes:
        queries: Labels asked for, the first ones about the clean image left out.
        trace: Of the iterates.
    """

    def __init__(self, oracle: Oracle, cap: int, unseen: int) -> None:
        """Prepares for one image.

        Args:
            oracle: The network.
            cap: Most queries.
            unseen: Labels that ART asks for before its attack begins, which are not counted.
        """
        self._oracle, self._cap, self._unseen = oracle, cap, unseen
        self.queries = -unseen
        self.trace: Trace = []
        self.clean: NDArray[np.float32] = np.empty(0, np.float32)

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """One-hot labels, float32 (N, classes).

        Raises:
            SpentError: The cap is reached.
        """
        if self.queries + len(x) > self._cap:
            self.queries = self._cap
            raise SpentError
        self.queries += len(x)
        # Under numpy 2 a float64 scalar no longer yields to a float32 array, so that ART's points are float64.
        frames = np.clip(x, 0, 1).astype(np.float32)
        return np.eye(self._oracle.classes, dtype=np.float32)[self._oracle.labels(frames)]

    def note(self, point: NDArray[Any]) -> None:
        """Notes an iterate of any shape."""
        self.trace.append((self.queries, float(np.linalg.norm(point.reshape(-1) - self.clean))))


class _HopSkipJump(HopSkipJump):  # type: ignore[misc]  # ART has no types
    watched: Watched

    def _compute_delta(self, current_sample: Any, *rest: Any, **named: Any) -> Any:
        # The first thing that an iteration does with the iterate of the one before.
        self.watched.note(current_sample)
        return super()._compute_delta(current_sample, *rest, **named)


class _Boundary(BoundaryAttack):  # type: ignore[misc]
    watched: Watched

    def _attack(self, initial_sample: Any, *rest: Any) -> Any:
        self.watched.note(initial_sample)
        return super()._attack(initial_sample, *rest)

    def _best_adv(self, original_sample: Any, potential_advs: Any) -> Any:
        # ART's is static; called on the instance, whatever it returns becomes the iterate.
        best = BoundaryAttack._best_adv(original_sample, potential_advs)  # noqa: SLF001
        self.watched.note(best)
        return best


class _GeoDA(GeoDA):  # type: ignore[misc]
    watched: Watched

    def _black_grad_batch(self, x_boundary: Any, *rest: Any) -> Any:
        self.watched.note(x_boundary)
        return super()._black_grad_batch(x_boundary, *rest)


KINDS: dict[str, tuple[Callable[..., Any], int]] = {
    "hopskipjump": (_HopSkipJump, 1),
    "boundary": (_Boundary, 1),
    "geoda": (_GeoDA, 0),
}
"""ART's attack and how many labels it asks for before it begins, by our name of it."""


def search(kind: str, oracle: Oracle, clean: NDArray[np.float32], label: int, *, cap: int, seed: int) -> Trace:
    """Runs ART's untargeted attack with its defaults on one image, until the cap.

    Args:
        kind: A key of `KINDS`.
        oracle: A network of float32 frames.
        clean: float32 (C, H, W).
        label: The network's label of it.
        cap: Most queries.
        seed: Of all randomness.

    Returns:
        Its iterates.
    """
    make, unseen = KINDS[kind]
    watched = Watched(oracle, cap, unseen)
    watched.clean = clean.reshape(-1)
    classifier = BlackBoxClassifierNeuralNetwork(
        watched.predict, oracle.shape, oracle.classes, channels_first=True, clip_values=(0.0, 1.0)
    )
    named = {} if kind == "geoda" else {"targeted": False}
    attack = make(classifier, verbose=False, **named)
    attack.watched = watched
    with _patched(seed), contextlib.suppress(SpentError):
        attack.generate(clean[np.newaxis], np.eye(oracle.classes, dtype=np.float32)[[label]])
    return watched.trace


@contextlib.contextmanager
def _patched(seed: int) -> Iterator[None]:
    """Numpy as ART expects it, for as long as one search takes."""
    randoms, had_mat = np.random.RandomState, hasattr(np, "mat")
    drawn = iter(range(1 << 30))

    def seeded(given: Any = None) -> np.random.RandomState:
        # ART draws its first noise from a generator seeded by the system, so that no run could be repeated.
        return randoms((seed * 1_000 + next(drawn)) % (1 << 32) if given is None else given)

    np.random.seed(seed % (1 << 32))  # noqa: NPY002  ART's generator is the global one
    numpy: Any = np
    numpy.random.RandomState = seeded
    if not had_mat:
        # Removed in numpy 2; GeoDA builds its basis with it.
        numpy.mat = np.asmatrix
    try:
        # GeoDA keeps its basis in the working directory.
        with contextlib.chdir(_scratch()):
            yield
    finally:
        numpy.random.RandomState = randoms
        if not had_mat:
            del numpy.mat


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def _scratch() -> str:
    """One folder for all searches, removed at the end of the process."""
    if not _FOLDERS:
        _FOLDERS.append(tempfile.TemporaryDirectory(prefix="variegate-art-"))
    return _FOLDERS[0].name
