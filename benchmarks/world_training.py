"""Training of the road-sign network on the endless stream of frames.

Every frame is seen once, so training accuracy is accuracy on fresh frames. One seed gives the same weights
again with one thread, on the same processor and versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from variegate.device_sim.world.dataset import batch
from variegate.device_sim.world.network import SignNet, read_labels
from variegate.device_sim.world.signs import SIGNS
from variegate.keys.errors import MisuseError

TRAIN_SEED = 1
"""Stream of the training frames, and seed of the initial weights."""
TEST_SEED = 2
"""Stream of the frames that accuracy is measured on."""
IMAGES = 80_000
"""Training frames of the packaged weights."""

_BATCH = 100
_LEARNING_RATE = 4e-3
_WEIGHT_DECAY = 0.02
_SMOOTHING = 0.05
_REPORTS = 20
_TEST_IMAGES = 4_000


@dataclass(frozen=True)
class Evaluation:
    """How well a network reads a run of frames.

    Attributes:
        confusion: int64 (n, n), frames by true class (row) and answer (column).
    """

    confusion: NDArray[np.int64]

    @property
    def images(self) -> int:
        """Number of frames."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Part of the frames read rightly."""
        return float(np.trace(self.confusion) / self.confusion.sum())


def train(*, seed: int = TRAIN_SEED, images: int = IMAGES, progress: Callable[[str], None] = lambda _: None) -> SignNet:
    """Train a network from nothing, with AdamW and a one-cycle learning rate.

    Args:
        seed: Fixes the initial weights and the frames.
        images: Frames to train on, at least one batch of 100; rounded down to whole batches.
        progress: Told a line now and then.

    Returns:
        The network in evaluation mode.

    Raises:
        MisuseError: Too few images.
    """
    steps = images // _BATCH
    if steps < 1:
        raise MisuseError(f"{images} images are too few to train on", hint=f"use at least {_BATCH}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SignNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # faster on a CPU
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=_LEARNING_RATE, total_steps=steps + 1, pct_start=0.2
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=_SMOOTHING)
    every, right, begin = max(1, steps // _REPORTS), 0, time.monotonic()
    for step in range(1, steps + 1):
        frames = batch(seed, (step - 1) * _BATCH, _BATCH)
        labels = torch.from_numpy(frames.labels)
        logits = network(torch.from_numpy(frames.images).float() / 255)
        loss = loss_of(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        right += int((logits.argmax(dim=1) == labels).sum())
        if step % every == 0:
            share = right / (every * _BATCH)
            progress(f"{step * _BATCH:6d} images, {time.monotonic() - begin:4.0f} s, {share:6.1%} right")
            right = 0
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


def evaluate(network: nn.Module, *, seed: int = TEST_SEED, images: int = _TEST_IMAGES) -> Evaluation:
    """Measure a network on a stream it was not trained on.

    Raises:
        MisuseError: Seed or number of images is out of range.
    """
    if images < 1:
        raise MisuseError(f"{images} images say nothing of a network", hint="use at least 1")
    frames = batch(seed, 0, images)
    answers = read_labels(network, torch.from_numpy(frames.images)).numpy()
    confusion = np.zeros((len(SIGNS), len(SIGNS)), dtype=np.int64)
    np.add.at(confusion, (frames.labels, answers), 1)
    return Evaluation(confusion)


def weights_of(network: SignNet) -> bytes:
    """Serialise the weights as safetensors; the same weights give the same bytes."""
    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
