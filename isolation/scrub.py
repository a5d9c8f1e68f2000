"""Clears the weights that a run leaves on the stack.

onnxruntime multiplies matrices out of small packed panels, up to 64 KiB of weights at a time, which it keeps on the
stack and never clears. They lie below the caller's stack frame, where no other data is in use between calls.
"""

from __future__ import annotations

import ctypes
import platform

from variegate.keys.errors import DeviceError

_DEPTH = 192 << 10
"""Bytes to clear: three times the largest panel. The thread's stack must have that much left."""
_OWN = 2 << 10
"""Bytes below the measured place that the call of `memset` itself may use."""
_POINTERS = {"x86_64": 160, "aarch64": 432}
"""Where `getcontext(3)` writes the stack pointer: `uc_mcontext.gregs[REG_RSP]`, `uc_mcontext.sp`."""
_CONTEXT_BYTES = 8192


class Scrub:
    """Clears the caller's unused stack; one for each thread."""

    def __init__(self) -> None:
        """Prepares.

        Raises:
            DeviceError: On a processor whose stack pointer it cannot find.
        """
        place = _POINTERS.get(platform.machine())
        library = ctypes.CDLL(None)
        if place is None or not hasattr(library, "getcontext"):
            raise DeviceError("the stack cannot be cleared on this kind of processor")
        self._context = ctypes.create_string_buffer(_CONTEXT_BYTES)
        self._pointer = ctypes.c_size_t.from_buffer(self._context, place)
        self._read, self._clear = library.getcontext, library.memset
        self._read.argtypes = [ctypes.c_void_p]
        self._clear.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._address = ctypes.addressof(self._context)

    def __call__(self) -> None:
        """Clears."""
        # Both calls are made from this frame, so that the second stands where the first did.
        self._read(self._address)
        self._clear(self._pointer.value - _DEPTH, 0, _DEPTH - _OWN)
