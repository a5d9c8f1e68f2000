"""A simulated device: fuses, a disk that loses power, two slots, flashing. Imports `keys` and `runtime`.

What most people call::

    from variegate import device_sim

    with device_sim.open_port("car") as port:
        label = port.classify(image)

"car" is a device's folder, as `variegate device new` makes it and `variegate device flash` fills it; `image` is a frame
as its copy takes it, uint8 (C, H, W). The port returns only labels.
"""

from typing import TYPE_CHECKING

from variegate.keys.face import lazily

if TYPE_CHECKING:
    from variegate.device_sim.device import Device
    from variegate.device_sim.hosting import host_for, open_port
    from variegate.isolation.policy import DevicePolicy

__all__ = ["Device", "DevicePolicy", "host_for", "open_port"]

__getattr__ = lazily(
    __name__,
    Device="variegate.device_sim.device",
    DevicePolicy="variegate.isolation.policy",
    host_for="variegate.device_sim.hosting",
    open_port="variegate.device_sim.hosting",
)
