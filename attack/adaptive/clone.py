"""Extraction by labels: a student learns a device's answers (Knockoff Nets: Orekondy, Schiele, Fritz, CVPR 2019).

Assumes a transfer set, pictures of the same kind without labels, and nothing else: neither architecture nor weights.
The device labels the pictures (the paper's random strategy, and the barest of its answers: arg max alone), a student
is trained on them, and the student is then attacked as a white box. Samples found there know nothing of any copy's
rewriter, so they carry over to a fleet exactly as far as the fleet shares the base's boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from variegate.attack.oracle import Oracle, ask_all, to_frames, to_points
from variegate.attack.search import seeded
from variegate.attack.whitebox.deepfool import DeepFool
from variegate.attack.whitebox.pgd import Pgd
from variegate.keys.errors import MisuseError


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How a clone is made.

    Attributes:
        queries: Most pictures that the device is asked about.
        epochs: Passes over them.
        width: Channels of the student's first layer.
        batch: Pictures of one step.
        rate: Highest learning rate; it falls to 0 along a cosine.
        shift: Most pixels that a picture is moved by in training, either way.
        seed: Of the choice of pictures, of the student's start, and of the order.
    """

    queries: int
    epochs: int = 10
    width: int = 32
    batch: int = 64
    rate: float = 2e-3
    shift: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.queries, self.epochs, self.width, self.batch) < 1 or self.shift < 0 or not self.rate > 0:
            raise MisuseError("an extraction needs queries, epochs, width, batch and a rate above 0")


class Student(nn.Module):
    """Three convolutions with batch normalisation, the last two with stride 2, and one linear layer.

    Args:
        shape: Of an image, (C, H, W).
        classes: Number of classes.
        width: Channels of the first layer; the others have two and four times as many.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = shape[0]
        for stride, outputs in ((1, width), (2, 2 * width), (2, 4 * width)):
            layers += [
                nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            channels = outputs
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(16 * channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, classes), of images (N, C, H, W) in 0..1."""
        out: Tensor = self.head(self.features(2 * images - 1))
        return out


@dataclass(frozen=True)
class Clone:
    """What an extraction gave.

    Attributes:
        student: Images (N, C, H, W) in 0..1 to logits; in evaluation mode, without gradients of its own.
        queries: Labels asked for.
    """

    student: nn.Module
    queries: int

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """The student's labels, int64 (N,), of frames of either dtype."""
        with torch.no_grad():
            pieces = [
                self.student(torch.from_numpy(to_points(frames[i : i + 256]))).argmax(dim=1).numpy()
                for i in range(0, len(frames), 256)
            ]
        return np.concatenate(pieces)

    def agreement(self, oracle: Oracle, frames: NDArray[Any]) -> float:
        """Share of held-out frames that student and device answer alike; costs a query each."""
        return float((self.labels(frames) == ask_all(oracle, frames)).mean())


def extract(oracle: Oracle, pictures: NDArray[Any], how: Extraction) -> Clone:
    """Asks the device about a random choice of pictures, and trains a student on what it says.

    The same pictures, answers and settings give the same student on the same machine with one thread; torch's global
    generator is left as it was.

    Args:
        oracle: The device.
        pictures: The transfer set, frames (N, *shape) of its dtype.
        how: Budget and training.

    Raises:
        MisuseError: There are no pictures.
        LimitError, RefusedError, DeviceError: The device's.
    """
    if not len(pictures):
        raise MisuseError("an extraction needs pictures to ask about")
    rng = seeded("clone", how.seed)
    chosen = rng.permutation(len(pictures))[: how.queries]
    labels = torch.from_numpy(ask_all(oracle, pictures[chosen]))
    images = torch.from_numpy(to_points(pictures[chosen]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(1 << 62)))
        student = Student(oracle.shape, oracle.classes, how.width)
    _train(student, images, labels, how, rng)
    return Clone(student, len(chosen))


def _train(student: Student, images: Tensor, labels: Tensor, how: Extraction, rng: np.random.Generator) -> None:
    steps = how.epochs * -(-len(images) // how.batch)
    optimiser = torch.optim.Adam(student.parameters(), lr=how.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    student.train()
    for _ in range(how.epochs):
        order = torch.from_numpy(rng.permutation(len(images)))
        for start in range(0, len(order), how.batch):
            at = order[start : start + how.batch]
            down, right = (int(n) for n in rng.integers(-how.shift, how.shift, 2, endpoint=True))
            seen = torch.roll(images[at], (down, right), dims=(2, 3))
            loss = functional.cross_entropy(student(seen), labels[at])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    student.eval()
    for parameter in student.parameters():
        parameter.requires_grad_(False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread, so that sums come out the same on every machine, until the end of the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def samples(clone: Clone, attack: Pgd | DeepFool, clean: NDArray[Any], dtype: str) -> NDArray[Any]:
    """White-box samples on the clone, as frames for the fleet.

    Args:
        clone: The clone.
        attack: PGD, or DeepFool, which ends at the clone's boundary: take it further (`overshoot.stretched`).
        clean: Frames (N, *shape).
        dtype: Of the result.

    Returns:
        Frames of the shape of `clean`; whether they fool even the clone is for the caller to ask.
    """
    images = torch.from_numpy(to_points(clean))
    if isinstance(attack, DeepFool):
        return to_frames(attack.run(clone.student, images), dtype)
    classes = torch.from_numpy(clone.labels(clean))
    return to_frames(attack.run(clone.student, images, classes), dtype)
