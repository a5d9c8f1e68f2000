"""A fleet: a copy for every line of a list, each an envelope, entered in a registry."""

from pathlib import Path

from variegate.cli.main import main
from variegate.device_sim import Device
from variegate.device_sim.world.network import load_signnet
from variegate.export import prepare
from variegate.keys import Seller

seller = Seller.generate()
seller.save(Path("seller.key"), "only an example")
Path("passphrase").write_text("only an example")
Path("passphrase").chmod(0o600)
prepare(load_signnet(), shape=(3, 32, 32), name="spring").save(Path("release"))

lines = ["buyer,device"]
for number in range(3):
    with Device.create(Path(f"car{number}"), "car-v1", seller.root) as device:
        Path(f"car{number}.json").write_text(device.identity.to_json())
    lines.append(f"buyer {number},car{number}.json")
Path("fleet.csv").write_text("\n".join(lines) + "\n")

words = "export fleet release --seller seller.key --list fleet.csv --cohort europe --out copies"
main([*words.split(), "--passphrase-file", "passphrase"])
main(["export", "registry", "registry.sqlite"])
