"""The networks and test sets of the studies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from torch import nn

from testbed.zoo import data, gtsrb_small, gtsrb_tiny, networks
from variegate.export.intake.base import Base, from_torch
from variegate.export.intake.contract import InputSpec

VALIDATION = 2_000
"""Images at the head of a test set that calibration sees; accuracy is given with and without them."""


@dataclass(frozen=True)
class Subject:
    """One network with its test set.

    Attributes:
        name: Of the dataset.
        network: Of the network.
        load: Loads the torch module, float32 (N, 3, 32, 32) in 0..1 to logits.
        images: Loads the test set.
    """

    name: str
    network: str
    load: Callable[[], nn.Module]
    images: Callable[[], data.Images]

    @cached_property
    def module(self) -> nn.Module:
        """The torch module."""
        return self.load()

    @cached_property
    def base(self) -> Base:
        """The base made from it."""
        return from_torch(self.module, (3, 32, 32), InputSpec())

    def test_set(self, count: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The first `count` test images, uint8 (N, 3, 32, 32), and their classes, int64 (N,)."""
        loaded = self.images()
        return loaded.x[:count], loaded.y[:count]


CIFAR10 = Subject("cifar10", "resnet20", lambda: networks.load("cifar10_resnet20_a"), data.cifar10_test)
GTSRB = Subject("gtsrb", "gtsrb_small", gtsrb_small.load, data.gtsrb_test)
SUBJECTS = (CIFAR10, GTSRB)

GTSRB_TINY = tuple(
    Subject("gtsrb", f"gtsrb_tiny_{name}", partial(gtsrb_tiny.load, name), data.gtsrb_test) for name in gtsrb_tiny.NAMES
)
"""Independently trained networks of one architecture: the bases of campaigns on GTSRB."""
CIFAR10_BASES = tuple(
    Subject("cifar10", name, partial(networks.load, f"cifar10_{name}"), data.cifar10_test)
    for name in ("resnet20_a", "resnet20_b", "resnet8")
)
"""Independently trained networks of three architectures: the bases of campaigns on CIFAR-10."""
