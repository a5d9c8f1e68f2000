"""A torch model: from a module to a label of a sealed copy on a device."""

from pathlib import Path

from variegate import device_sim, export, keys
from variegate.device_sim.flash import flash
from variegate.device_sim.world.dataset import batch
from variegate.device_sim.world.network import load_signnet

module, signs = load_signnet(), batch(1, 0, 1000)  # yours: any torch.nn.Module, images (N, C, H, W) and their classes

seller = keys.Seller.generate()
release = export.prepare(module, shape=(3, 32, 32), validation=(signs.images, signs.labels), loss=0.5, name="signs")
with device_sim.Device.create(Path("car"), "car-v1", seller.root) as device:
    sealed = export.copies(release, seller, {"acme": device.identity})["acme"]
    flash(device, keys.Artefact.from_bytes(sealed.to_bytes()))
with device_sim.open_port("car") as port:
    print("label", port.classify(signs.images[0]), "class", signs.labels[0])
