"""Train the small GTSRB network: ``python -m benchmarks.train_gtsrb``.

The full run trains on every image of the training file and uses the test set once, at the end. To compare settings use
``--validate``, which holds out every fifth track instead. A seed determines the weights on one machine with one number
of threads; another machine or number of threads adds floats in another order. If other work shares the cores, set
OMP_WAIT_POLICY=passive: the result is the same, many times sooner.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import torch
from safetensors.torch import save_file
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from testbed.result import result_path, source_commit, write_result
from testbed.zoo.data import Images, gtsrb_test, gtsrb_train
from testbed.zoo.gtsrb_small import WEIGHTS, GtsrbSmall

Network = TypeVar("Network", bound=torch.nn.Module)

NAME: Final = "train_gtsrb"

THREADS: Final = 2

HOLD_OUT: Final = 5  # every fifth track of each class is held out by --validate


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the network is trained: Nesterov SGD under a one-cycle learning rate.

    Attributes:
        epochs: Passes over the training images.
        batch: Images of a step.
        rate: Highest learning rate.
        decay: Weight decay.
        rotation: Largest rotation either way, degrees.
        scale: Largest zoom either way, as a factor.
        shift: Largest shift either way along each axis, pixels.
        shear: Largest shear either way.
        light: Largest brightening or darkening, and change of contrast, as a factor.
    """

    epochs: int = 10
    batch: int = 128
    rate: float = 0.15
    decay: float = 5e-4
    rotation: float = 12.0
    scale: float = 1.2
    shift: float = 3.0
    shear: float = 0.1
    light: float = 1.8


def augment(x: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Move, turn, zoom, shear and relight each image of a batch on its own; nothing is mirrored.

    Args:
        x: Images, float32 (N, 3, H, W) in [0, 1].
        recipe: The largest change of each kind.
        generator: Source of every random number.

    Returns:
        Images of the same shape and range.
    """
    angle, zoom, shear, right, down, brightness, contrast = 2 * torch.rand((7, len(x)), generator=generator) - 1
    angle = angle * math.radians(recipe.rotation)
    zoom = recipe.scale**zoom
    shear = shear * recipe.shear
    step = 2 * recipe.shift / x.shape[-1]  # affine_grid's planes are 2 wide
    rows = (
        torch.stack([zoom * angle.cos(), zoom * (shear - angle.sin()), step * right], 1),
        torch.stack([zoom * angle.sin(), zoom * angle.cos(), step * down], 1),
    )
    grid = affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    moved = grid_sample(x, grid, padding_mode="border", align_corners=False)
    mean = moved.mean((1, 2, 3), keepdim=True)
    brightness, contrast = (recipe.light ** v[:, None, None, None] for v in (brightness, contrast))
    return torch.clamp(brightness * (mean + contrast * (moved - mean)), 0, 1)


def train(images: Images, recipe: Recipe, seed: int, make: Callable[[], Network]) -> Network:
    """A network trained on `images`, in eval mode; deterministic given the seed.

    Args:
        images: To train on.
        recipe: How.
        seed: Of the first weights, of the order and of the augmentation: another seed shares none of them.
        make: Makes the untrained network.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make()
    model.train()
    steps = math.ceil(len(images) / recipe.batch)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.rate, total_steps=recipe.epochs * steps, pct_start=0.25
    )
    pixels, labels = torch.from_numpy(images.x), torch.from_numpy(images.y)
    started = time.monotonic()
    for epoch in range(recipe.epochs):
        total = 0.0
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order), recipe.batch):
            index = order[start : start + recipe.batch]
            x = augment(pixels[index].float() / 255, recipe, generator)
            x = x.contiguous(memory_format=torch.channels_last)  # a quarter faster on a CPU
            # No label smoothing: it keeps right answers unsure, and those are what a rewriter turns.
            loss = cross_entropy(model(x), labels[index])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += loss.item() * len(index)
        elapsed = time.monotonic() - started
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {total / len(images):.4f}, {elapsed:.0f} s", flush=True)
    model.eval()
    return model


@torch.inference_mode()
def count_right(model: torch.nn.Module, images: Images) -> int:
    """How many of `images` the model labels rightly."""
    return sum(
        int((model(torch.from_numpy(part.unit())).argmax(1) == torch.from_numpy(part.y)).sum())
        for part in (images.select(slice(i, i + 500)) for i in range(0, len(images), 500))
    )


def split(images: Images) -> tuple[Images, Images]:
    """Training and held-out images, divided by whole tracks: every fifth track of each class is held out.

    Raises:
        ValueError: The images have no tracks.
    """
    if images.track is None:
        raise ValueError("only the training set has tracks")
    held_out = images.track % HOLD_OUT == HOLD_OUT - 1
    return images.select(~held_out), images.select(held_out)


def main() -> None:
    """Train, write the weights and the result."""
    arguments = _parser().parse_args()
    source_commit()  # fixed before the weights, a tracked file, are written
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow
    images, recipe, limit = gtsrb_train(), Recipe(), None
    if arguments.quick:
        images, recipe, limit = images.select(slice(None, None, 20)), replace(recipe, epochs=2), 500
    if arguments.validate:
        images, held_out = split(images)
        right = count_right(train(images, recipe, arguments.seed, GtsrbSmall), held_out)
        print(f"held-out tracks: {right} of {len(held_out)} right ({right / len(held_out):.2%})")
        return
    started = time.monotonic()
    model = train(images, recipe, arguments.seed, GtsrbSmall)
    seconds = time.monotonic() - started

    result = result_path(NAME, quick=arguments.quick, out=arguments.out)
    weights = WEIGHTS if result == result_path(NAME, quick=False, out=None) else result.with_suffix(".safetensors")
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), weights)
    weights.chmod(0o644)  # save_file makes it private
    test = gtsrb_test().select(slice(limit))
    right = count_right(model, test)
    print(f"test set: {right} of {len(test)} right ({right / len(test):.2%})")
    write_result(
        NAME,
        figures={
            "accuracy": right / len(test),
            "right": right,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "weights_bytes": weights.stat().st_size,
            "training_seconds": round(seconds, 1),
        },
        raw={
            "recipe": asdict(recipe),
            "threads": THREADS,
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
        seeds=[arguments.seed],
        n={"training_images": len(images), "test_images": len(test)},
        path=result,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_gtsrb", description="Train the GTSRB network.")
    parser.add_argument("--quick", action="store_true", help="a smoke run on a twentieth of the images")
    parser.add_argument("--validate", action="store_true", help="hold out tracks, print their accuracy, write nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the result file; the weights are written beside it")
    return parser


if __name__ == "__main__":
    main()
