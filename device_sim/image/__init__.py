"""A device as a bootable image: Debian's kernel and interpreter, this package, and a flashed device.

build(car, image)                                   # needs Debian's packages and tools, not root
with Machine(image, tpm_state, port=8000) as one:   # QEMU without acceleration, a TPM by swtpm
    one.wait()                                      # http://127.0.0.1:8000 answers
"""

from variegate.device_sim.image.build import build
from variegate.device_sim.image.machine import Machine

__all__ = ["Machine", "build"]
