# %% [markdown]
# # From a classifier to an accusation
# A seller makes copies of one network for two buyers. One buyer attacks her own device, shows what she found to the
# other's, and the seller finds her by her samples. Run the cells in a notebook, or the file as a script.

# %%
from pathlib import Path

from variegate import attack, device_sim, export, forensics, keys
from variegate.device_sim.flash import flash
from variegate.device_sim.world.dataset import batch
from variegate.device_sim.world.network import load_signnet

# %% [markdown]
# ## 1. A release
# The network reads drawn road signs. `prepare` looks for the strongest rewriter that costs at most half a point of
# accuracy on images that the network has not seen. Nothing is trained.

# %%
network, signs = load_signnet(), batch(1, 0, 1000)
release = export.prepare(
    network, shape=(3, 32, 32), validation=(signs.images, signs.labels), loss=0.5, name="walkthrough"
)
if calibration := release.calibration:
    print(f"accuracy: copies {calibration.tried[-1].accuracy:.1%}, the network {calibration.base_accuracy:.1%}")

# %% [markdown]
# ## 2. Two buyers
# Each device has keys of its own. A copy opens on its device only: messages and dithers of the rewriter follow from the
# seller's secret and the buyer's name.

# %%
seller = keys.Seller.generate()
for buyer in ("alice", "bob"):
    with device_sim.Device.create(Path(buyer), "car-v1", seller.root) as device:
        sealed = export.copies(release, seller, {buyer: device.identity})[buyer]
        flash(device, keys.Artefact.from_bytes(sealed.to_bytes()))

with device_sim.open_port("alice") as port:
    print("label:", port.classify(signs.images[0]), "class:", signs.labels[0])

# %% [markdown]
# ## 3. Alice attacks her own device
# She sees labels only. HopSkipJump looks for the nearest images that her device reads as something else.

# %%
with attack.open_oracle("device:alice") as own:
    trial = attack.attack_images(own, "hopskipjump", signs.images[:6], signs.labels[:6], queries=2000)
for outcome in trial.judged:
    print(f"sign {outcome.key}: read as {outcome.label}, {outcome.distance:.2f} away, {outcome.queries} labels")

# %% [markdown]
# ## 4. She shows the samples to Bob's device
# `s` stretches a perturbation. Samples near the image seldom fool another copy; stretched ones do more often, and 2,000
# labels are few: see docs/replication.md.

# %%
with attack.open_oracle("device:alice") as own, attack.open_oracle("device:bob") as other:
    shown = attack.replay(trial, {"alice": own, "bob": other})
for name, counts in shown.fooled.items():
    words = ", ".join(f"s = {s:g}: {count}" for s, count in zip(shown.overshoots, counts, strict=True))
    print(f"of {shown.samples} samples fool {name}'s device at {words}")

# %% [markdown]
# ## 5. The seller traces them
# Samples lie on the attractors of the copy that they were found on. The p-value is exact: how often an innocent copy
# looks as bad by chance. Nobody is accused unless that is rare enough for the whole fleet.

# %%
Path("found.npz").write_bytes(trial.archive())
samples = forensics.read_samples([Path("found.npz")], release)
verdict = forensics.trace(release, seller, samples, [("alice", 0), ("bob", 0)])
for suspect in verdict.suspects:
    print(f"{suspect.name}: p = {suspect.p_value:.1e}")
print("accused:", verdict.accused or "nobody")
