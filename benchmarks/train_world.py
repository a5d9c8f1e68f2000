"""Train the road-sign network again and measure the packaged one: ``python -m benchmarks.train_world``.

The packaged weights come from ``python -m variegate.device_sim.world.train``. This repeats that training, reports
whether it gives the same bytes, and measures the packaged network on frames that were not in any training. It writes no
weights.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Final

import torch

from testbed.result import result_path, write_result
from variegate.device_sim.world.dataset import batch
from variegate.device_sim.world.network import WEIGHTS, load_signnet, multiply_adds
from variegate.device_sim.world.signs import SIGNS
from variegate.device_sim.world.train import IMAGES, TEST_SEED, TRAIN_SEED, evaluate, train, weights_of

NAME: Final = "world"

TIMED_FRAMES: Final = 200  # of one repeat
REPEATS: Final = 15


def main() -> None:
    """Train, measure and write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_world", description="Train and measure the road-sign network."
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run with few images")
    parser.add_argument("--out", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    training_images, test_images = (1_000, 500) if arguments.quick else (IMAGES, 10_000)

    torch.set_num_threads(1)
    started = time.monotonic()
    trained = train(seed=TRAIN_SEED, images=training_images, progress=partial(print, flush=True))
    training_seconds = time.monotonic() - started
    packaged = load_signnet()
    blob = resources.files("variegate.device_sim.world").joinpath(WEIGHTS).read_bytes()
    result = evaluate(packaged, seed=TEST_SEED, images=test_images)
    again = evaluate(trained, seed=TEST_SEED, images=test_images)
    frame_ms = [_milliseconds_of_a_frame(start) for start in range(0, REPEATS * TIMED_FRAMES, TIMED_FRAMES)]
    print(f"packaged weights: {result.accuracy:.2%} of {result.images} fresh frames read rightly")
    write_result(
        NAME,
        figures={
            "accuracy": result.accuracy,
            "accuracy_trained_again": again.accuracy,
            "same_weights_trained_again": int(weights_of(trained) == blob),
            "classes": len(SIGNS),
            "parameters": sum(parameter.numel() for parameter in packaged.parameters()),
            "multiply_adds": multiply_adds(),
            "weights_bytes": len(blob),
            "training_seconds": round(training_seconds, 1),
            "frame_ms": round(statistics.median(frame_ms), 3),
        },
        raw={
            "classes": [sign.name for sign in SIGNS],
            "confusion": result.confusion.tolist(),
            "frame_ms": frame_ms,
            "weights_sha256": hashlib.sha256(blob).hexdigest(),
        },
        seeds=[TRAIN_SEED, TEST_SEED],
        n={
            "training_images": training_images,
            "test_images": test_images,
            "timed_frames": TIMED_FRAMES,
            "repeats": REPEATS,
        },
        path=result_path(NAME, quick=arguments.quick, out=arguments.out),
    )


def _milliseconds_of_a_frame(start: int) -> float:
    """Time the drawing of frames; processor time, so that what else runs here does not count."""
    before = time.process_time()
    batch(TEST_SEED, start, TIMED_FRAMES)
    return (time.process_time() - before) * 1000 / TIMED_FRAMES


if __name__ == "__main__":
    main()
