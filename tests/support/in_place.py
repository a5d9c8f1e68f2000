"""Serves a payload from a process of its own, for a test that reads this process's memory.

    python -m tests.support.in_place <payload> <frames.npy> in-place|unplanned|normal|no-scrub

A forked child decrypts nothing but lays the copy out, as an enclave's loader does, and ends. Prints a line when it is
ready and after each batch size read from standard input: the range of the region, then labels.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.artefacts import manifest_for
from variegate.isolation.arrange import Optimise, arrange, optimised
from variegate.isolation.placed import PlacedCopy, PlacedEngine
from variegate.keys import recipe
from variegate.keys.artefact import Payload
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import ComponentRef, Manifest
from variegate.runtime.engine import Engine
from variegate.runtime.opening import Copy

SEED = bytes(range(32))
_ROOM = 4 << 20
_MEMFD_SECRET = 447


def manifest(frames: Any) -> Manifest:
    """A manifest for such frames."""
    device = DeviceIdentity.generate("camera-v1").public
    ref = ComponentRef(id=bytes(16), length=1, chunk=1024, root=bytes(32))
    return manifest_for(device, ref, dtype=frames.dtype.name, shape=frames.shape[1:])


def pages() -> mmap.mmap:
    """Secret pages where the kernel has them, else shared ones."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.syscall(_MEMFD_SECRET, 0)
    if descriptor >= 0:
        try:
            os.ftruncate(descriptor, _ROOM)
            return mmap.mmap(descriptor, _ROOM, mmap.MAP_SHARED)
        except OSError:
            pass
        finally:
            os.close(descriptor)
    return mmap.mmap(-1, _ROOM, mmap.MAP_SHARED)


def load(payload: Path, region: memoryview, optimise: Optimise) -> int:
    """Lays a copy out in a process that ends; the bytes used."""
    length = mmap.mmap(-1, 8, mmap.MAP_SHARED)
    child = os.fork()
    if child == 0:
        try:
            read = Payload.from_bytes(payload.read_bytes())

            def allocate(count: int) -> memoryview:
                length[:] = count.to_bytes(8, "big")
                return region[:count]

            arrange(read, recipe.expand(read.tensors, SEED), allocate, optimise)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return int.from_bytes(length[:], "big")


@dataclass
class Served:
    """What answers, and where its region lies."""

    engine: Engine
    start: int = 0


def start(payload: Path, said: Manifest, mode: str) -> Served:
    """Opens the payload."""
    if mode == "normal":
        return Served(Engine(Copy.expand(Payload.from_bytes(payload.read_bytes()), SEED, said)))
    region = memoryview(pages())
    used = load(payload, region, optimised if mode != "unplanned" else lambda *_: None)
    address = np.frombuffer(region, np.uint8).ctypes.data
    return Served(PlacedEngine(PlacedCopy.from_region(said, region[:used])), address)


def main() -> None:
    """Serves."""
    payload, shown, mode = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
    served = start(payload, manifest(shown), mode)
    print(served.start, served.start + _ROOM, flush=True)
    for line in sys.stdin:
        labels = served.engine.run(shown[: int(line)])
        if mode in ("in-place", "unplanned"):
            assert isinstance(served.engine, PlacedEngine)
            served.engine.scrub()
        print(*labels.tolist(), flush=True)


if __name__ == "__main__":
    main()
