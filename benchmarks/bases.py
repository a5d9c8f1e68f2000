"""The networks and test sets that the issue-wide figures are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.zoo import data, gtsrb_small, networks
from variegate.export.base import Base, from_torch
from variegate.export.contract import InputSpec

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
