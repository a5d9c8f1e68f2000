"""Part of `benchmarks.study`: the bases, the fleets, and the images that are attacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.study_copies import open_copies
from testbed.settings import calibrated
from testbed.subjects import CIFAR10, GTSRB
from testbed.torch_ops import Copy
from testbed.zoo import data, gtsrb_tiny, networks
from variegate.attack.lane import Task, task
from variegate.attack.oracles.local import LocalCopy
from variegate.attack.search import seeded
from variegate.export.fuse import fuse
from variegate.export.intake.base import Base, from_torch
from variegate.export.intake.contract import InputSpec
from variegate.export.rewriters import Permutation, Rewriter
from variegate.keys.primitives import sha256

KINDS = ("permutation", "qim")


@dataclass(frozen=True)
class Dataset:
    """One dataset with its independently trained bases, the first of which the fleets of one base have.

    Attributes:
        name: Of the dataset.
        modules: Load the bases.
        test: Loads the test set.
        transfer: Loads the pictures that a clone may ask about, apart from the test images attacked.
    """

    name: str
    modules: tuple[Callable[[], nn.Module], ...]
    test: Callable[[], data.Images]
    transfer: Callable[[], data.Images]

    @cached_property
    def bases(self) -> list[tuple[nn.Module, Base]]:
        """Each base in torch and as the exporter takes it."""
        loaded = [load() for load in self.modules]
        return [(module, from_torch(module, (3, 32, 32), InputSpec())) for module in loaded]

    def rewriter(self, kind: str) -> Rewriter:
        """The paper's permutation (alpha 0.8), or the calibrated QIM."""
        return Permutation(alpha=0.8) if kind == "permutation" else calibrated(self.name, "qim")

    def devices(self, kind: str, count: int) -> list[LocalCopy]:
        """A fleet of one base."""
        template = fuse(self.bases[0][1], self.rewriter(kind), "uint8")
        return [LocalCopy(template, seed) for seed in seeds(count)]

    def opened(self, kind: str, count: int, base: int = 0) -> list[Copy]:
        """Copies in torch; those of the first base are the fleet's own."""
        module, exported = self.bases[base]
        first = 0 if base == 0 else 100 * base
        return open_copies(module, exported.contract, self.rewriter(kind), seeds(count, first), "uint8")


def seeds(count: int, first: int = 0) -> list[bytes]:
    """Buyers' seeds."""
    return [sha256(b"study", i.to_bytes(4)) for i in range(first, first + count)]


def datasets() -> tuple[Dataset, Dataset]:
    """GTSRB with the networks that are committed, and CIFAR-10 with three public ones."""
    tiny = [name for name in gtsrb_tiny.NAMES if gtsrb_tiny.weights(name).exists()]
    return (
        Dataset(
            "gtsrb",
            (lambda: GTSRB.module, *(lambda name=name: gtsrb_tiny.load(name) for name in tiny)),
            data.gtsrb_test,
            data.gtsrb_train,
        ),
        Dataset(
            "cifar10",
            (lambda: CIFAR10.module, *(lambda n=n: networks.load(f"cifar10_{n}") for n in ("resnet20_b", "resnet8"))),
            data.cifar10_test,
            data.cifar10_train,
        ),
    )


@dataclass(frozen=True)
class Attacked:
    """The images of one study.

    Attributes:
        index: In the test set, (N,).
        frames: uint8 (N, 3, 32, 32).
        classes: int64 (N,).
    """

    index: list[int]
    frames: NDArray[np.uint8]
    classes: NDArray[np.int64]

    def head(self, count: int) -> Attacked:
        """The first `count`."""
        return Attacked(self.index[:count], self.frames[:count], self.classes[:count])


def chosen(images: data.Images, count: int, readers: Sequence[LocalCopy]) -> Attacked:
    """Random test images that all of some devices read rightly."""
    order = np.random.default_rng(0).permutation(len(images.x))[: 2 * count + 20]
    right = np.all([device.labels(images.x[order]) == images.y[order] for device in readers], axis=0)
    kept = order[right][:count]
    return Attacked([int(i) for i in kept], images.x[kept], images.y[kept])


def tasks(attacked: Attacked, images: data.Images, queries: int, *seed: str | int) -> list[Task]:
    """One untargeted search for each image, from pictures of other classes."""
    out = []
    for n, i in enumerate(attacked.index):
        rng = seeded("study", *seed, i)
        others = np.flatnonzero(images.y != attacked.classes[n])
        starts = images.x[rng.choice(others, 10, replace=False)]
        label = int(attacked.classes[n])
        out.append(task(n, attacked.frames[n], label, starts=starts, queries=queries, rng=rng))
    return out
