"""A campaign that takes a second: a linear base, random images, two fleets, the real HopSkipJump."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from testbed.bases import CHANNELS, CLASSES, SIDE, images, weights

TEXT = """
schema = 1
name = "small"
seed = 11

[data]
images = "images.npz"
count = 6

[[fleet]]
name = "qim"
copies = 3
bases = ["a.onnx", "b.onnx"]
rewriter = { kind = "qim", grid = [4, 4], beta = 0.5 }

[[fleet]]
name = "perm"
copies = 2
bases = ["a.onnx"]
rewriter = { kind = "permutation", alpha = 0.3 }
dtype = "float32"
frame_rate = 30

[[attack]]
name = "hsj"
kind = "hopskipjump"
queries = 120
budgets = [20, 120]

[[attack]]
name = "art"
kind = "hopskipjump"
profile = "art-1.20"
queries = 60
attackers = 2
images = "split"
fleets = ["qim"]

[[attack]]
name = "aimed"
kind = "hopskipjump"
queries = 60
targeted = true
attackers = 1
fleets = ["perm"]

[replay]
overshoots = [1.0, 2.0]

[run]
unit = 2
workers = 2
"""


def write_inputs(folder: Path) -> Path:
    """Writes bases, images and the campaign's file.

    Returns:
        The file.
    """
    pictures = images(200)
    flat = pictures.reshape(200, -1).astype(np.float32) / np.float32(255)
    # Without a mean, or one class would have nearly all of random images.
    first, second = (w - w.mean(axis=0) for w in (weights(), weights(1)))
    for name, added in (("a", 0.0), ("b", 0.01)):
        weight = first + np.float32(added) * second
        onnx.save(_linear(weight), folder / f"{name}.onnx")
    np.savez(folder / "images.npz", x=pictures, y=(flat @ first).argmax(axis=1))
    path = folder / "small.toml"
    path.write_text(TEXT)
    return path


def content(folder: Path) -> dict[str, str]:
    """Every shard's digest, and the ledger's logical content."""
    out = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.parquet"))
    }
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        for table in ("meta", "units", "outcomes"):
            out[table] = repr(db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall())
    return out


def attack(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs `variegate attack`."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, env=environment(), **more)


def command(*arguments: str | Path) -> list[str]:
    """The command line of `variegate attack`."""
    return [sys.executable, "-m", "variegate.cli.main", "attack", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread for each process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _linear(weight: np.ndarray[Any, np.dtype[np.float32]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["in"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["out"])],
        "linear",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
