"""The seller's side: from a trained classifier to one sealed copy for each buyer.

What most people call::

    from variegate import export

    release = export.prepare("model.onnx", validation=(images, classes), loss=0.5)
    copies = export.copies(release, seller, {"acme": device})
    Path("acme.vgc").write_bytes(copies["acme"].to_bytes())

`images` are frames in the devices' format, uint8 (N, C, H, W); `seller` is a `keys.Seller`, and `device` the public
identity of acme's device.
"""

import os
from typing import TYPE_CHECKING

from variegate.keys.face import lazily

# Before onnxruntime is imported: its telemetry starts a thread, writes a file and calls a server of its maker's.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from variegate.export.delivery import copies
    from variegate.export.intake.contract import InputSpec
    from variegate.export.preparation import prepare
    from variegate.export.release import Release
    from variegate.export.sealing import Terms

__all__ = ["InputSpec", "Release", "Terms", "copies", "prepare"]

# Reading a registry must not load onnx.
__getattr__ = lazily(
    __name__,
    InputSpec="variegate.export.intake.contract",
    Release="variegate.export.release",
    Terms="variegate.export.sealing",
    copies="variegate.export.delivery",
    prepare="variegate.export.preparation",
)
