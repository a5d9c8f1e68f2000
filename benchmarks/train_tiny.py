"""Train the tiny GTSRB networks: ``python -m benchmarks.train_tiny``.

These are several independent networks of one architecture: each seed gives first weights, an order and an augmentation
of its own. The full run trains on every image and uses the test set once for each network;
``--validate`` holds out every fifth track instead. As in ``benchmarks.train_gtsrb``, a seed fixes the weights on one
machine with one number of threads, and there is no label smoothing, which harms copies.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from benchmarks.train_gtsrb import Recipe, count_right, split, train
from testbed.result import result_path, source_commit, write_result
from testbed.zoo.data import Images, gtsrb_test, gtsrb_train
from testbed.zoo.gtsrb_tiny import NAMES, GtsrbTiny, weights

NAME: Final = "train_tiny"
THREADS: Final = 2
SEEDS: Final = dict(zip(NAMES, (101, 202, 303), strict=True))
RECIPE: Final = Recipe(epochs=20)


def train_one(images: Images, recipe: Recipe, seed: int, path: Path) -> tuple[GtsrbTiny, dict[str, Any]]:
    """Trains one network, writes its weights as float16, and gives it back as written, with what to note of it."""
    started = time.monotonic()
    model = train(images, recipe, seed, GtsrbTiny)
    seconds = time.monotonic() - started
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    path.chmod(0o644)  # save_file makes it private
    model.load_state_dict(state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return model, {"seed": seed, "seconds": round(seconds, 1), "weights_sha256": digest}


def main() -> None:
    """Trains, writes the weights and the result."""
    arguments = _parser().parse_args()
    source_commit()  # fixed before the weights, tracked files, are written
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow
    images, recipe, limit = gtsrb_train(), RECIPE, None
    if arguments.quick:
        images, recipe, limit = images.select(slice(None, None, 20)), replace(recipe, epochs=2), 500
    if arguments.validate:
        images, held_out = split(images)
        right = count_right(train(images, recipe, SEEDS["a"], GtsrbTiny), held_out)
        print(f"held-out tracks: {right} of {len(held_out)} right ({right / len(held_out):.2%})")
        return
    result = result_path(NAME, quick=arguments.quick, out=arguments.out)
    committed = result == result_path(NAME, quick=False, out=None)
    test = gtsrb_test().select(slice(limit))
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in GtsrbTiny().parameters())}
    rows = {}
    for name, seed in SEEDS.items():
        path = weights(name) if committed else result.with_name(f"{result.stem}_{name}.safetensors")
        model, rows[name] = train_one(images, recipe, seed, path)
        right = count_right(model, test)
        rows[name]["right"] = right
        figures[f"accuracy_{name}"] = right / len(test)
        figures["weights_bytes"] = path.stat().st_size
        print(f"{name}: {right} of {len(test)} right ({right / len(test):.2%})", flush=True)
    figures["accuracy"] = min(figures[f"accuracy_{name}"] for name in NAMES)
    write_result(
        NAME,
        figures=figures,
        raw={"recipe": asdict(recipe), "threads": THREADS, "networks": rows},
        seeds=list(SEEDS.values()),
        n={"networks": len(NAMES), "training_images": len(images), "test_images": len(test)},
        path=result,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_tiny", description="Train the tiny networks.")
    parser.add_argument("--quick", action="store_true", help="a smoke run on a twentieth of the images")
    parser.add_argument("--validate", action="store_true", help="hold out tracks, print their accuracy, write nothing")
    parser.add_argument("--out", type=Path, help="the result file; the weights are written beside it")
    return parser


if __name__ == "__main__":
    main()
