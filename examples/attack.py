"""An attack on one copy, shown to another buyer's, and traced."""

from pathlib import Path

from variegate import attack, device_sim, export, forensics, keys
from variegate.device_sim.flash import flash
from variegate.device_sim.world.dataset import batch
from variegate.device_sim.world.network import load_signnet

signs = batch(1, 0, 1000)
seller = keys.Seller.generate()
release = export.prepare(load_signnet(), shape=(3, 32, 32), validation=(signs.images, signs.labels), name="signs")
for buyer in ("alice", "bob"):
    with device_sim.Device.create(Path(buyer), "car-v1", seller.root) as device:
        sealed = export.copies(release, seller, {buyer: device.identity})[buyer]
        flash(device, keys.Artefact.from_bytes(sealed.to_bytes()))

with attack.open_oracle("device:alice") as alice, attack.open_oracle("device:bob") as bob:
    found = attack.attack_images(alice, "hopskipjump", signs.images[:6], signs.labels[:6], queries=2000)
    shown = attack.replay(found, {"alice": alice, "bob": bob})
for name, counts in shown.fooled.items():
    words = ", ".join(f"s = {s:g}: {count}" for s, count in zip(shown.overshoots, counts, strict=True))
    print(f"of {shown.samples} samples fool {name}'s device at {words}")

Path("found.npz").write_bytes(found.archive())
samples = forensics.read_samples([Path("found.npz")], release)
verdict = forensics.trace(release, seller, samples, [("alice", 0), ("bob", 0)])
print("most suspected:", verdict.suspects[0].name, "- accused:", verdict.accused)
