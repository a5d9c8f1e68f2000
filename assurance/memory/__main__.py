"""Root's reads of a serving enclave: windows of weights, messages and keys, through every interface of Linux.

    python -m assurance.memory [--quick]

Run it as root. A ResNet-20 (CIFAR-10) and the small GTSRB network, with QIM and with permutation, sealed and flashed,
answer queries of several batch sizes and sign evidence and a receipt. Then they are read: `/proc/PID/mem`,
`process_vm_readv`, `ptrace`, `pidfd_getfd`, a core file. The control is the same enclave with secret pages off and open
to debuggers. A window is 32 bytes of a tensor (128 where it holds signs only), or 16 of a key; see
`assurance.memory.scan`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from assurance.memory.scan import Reading, Secrets, read_everything
from testbed.cars import DEVICE_CLASS
from testbed.result import result_path, source_commit, write_result
from testbed.settings import calibrated
from testbed.subjects import SUBJECTS, Subject
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.export.release import make_release
from variegate.export.rewriters import Permutation, Qim
from variegate.export.sealing import CopyOrder, Terms, seal_copies
from variegate.isolation.host import Isolated, IsolatedHost
from variegate.isolation.policy import DevicePolicy
from variegate.keys import recipe
from variegate.keys.artefact import Artefact
from variegate.keys.errors import MisuseError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller

MODES = {"protected": DevicePolicy(), "control": DevicePolicy(secret_pages=False, debug=True)}
BATCHES = (1, 7, 64)


@contextmanager
def serving(subject: Subject, kind: str, how: DevicePolicy) -> Iterator[tuple[Isolated, Secrets]]:
    """An enclave that has answered, and the secrets that it must not reveal."""
    images, _ = subject.test_set(256)
    release = make_release("isolation", subject.base, calibrated(subject.name, kind), images)
    seller = Seller.generate()
    with TemporaryDirectory(prefix="variegate-") as folder:
        place = Path(folder) / "device"
        with Device.create(place, DEVICE_CLASS, seller.root, policy=how) as device:
            order = CopyOrder(buyer="scan", device=device.identity, epoch=0, sequence=1, security_counter=0)
            (copy,) = seal_copies(release, seller, [order], Terms(vendor="benchmark", policy=Policy(budget=10**6)))
            flash(device, Artefact.from_bytes(copy.to_bytes()))
            with os.fdopen(device.identity_descriptor(), "rb") as file:
                identity = DeviceIdentity.from_bytes(file.read())
        seed = seller.buyer_seed("scan", 0)
        keyed = recipe.expand(release.template.tensors, seed)
        values = {**release.template.constants, **keyed}
        secrets = Secrets(
            {name: value.tobytes() for name, value in values.items()},
            {"seed": seed, "signing key": identity.signing_seed, "key agreement": identity.to_bytes()[-96:]},
        )
        with Device.open(place, host=IsolatedHost(how)) as device:
            port = device.boot()
            assert isinstance(port, Isolated)
            for batch in BATCHES:
                port.classify_batch(images[:batch])
            port.evidence(bytes(32))
            port.classify_with_receipt(images[:2])
            time.sleep(0.1)  # what the last run left is cleared after its answer
            yield port, secrets


def scan(subject: Subject, kind: str, mode: str) -> tuple[list[Reading], int]:
    """Reads one enclave by every way; also how many windows there were to find."""
    with serving(subject, kind, MODES[mode]) as (port, secrets):
        assert port.pid is not None
        return read_everything(port.pid, secrets), secrets.windows()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one network and one rewriter; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise MisuseError("this benchmark needs root", hint="run it as root")
    source_commit()
    subjects, kinds = (SUBJECTS[1:], (Qim.kind,)) if args.quick else (SUBJECTS, (Qim.kind, Permutation.kind))
    figures: dict[str, float] = {f"root_windows_{mode}": 0 for mode in MODES}
    raw: dict[str, Any] = {}
    for mode in MODES:
        for subject in subjects:
            for kind in kinds:
                readings, windows = scan(subject, kind, mode)
                raw[f"{mode}_{subject.name}_{kind}"] = {"windows": windows, "ways": [asdict(r) for r in readings]}
                for reading in readings:
                    figures[f"root_windows_{mode}"] += reading.windows
                    print(f"{mode} {subject.name} {kind} {reading}", flush=True)
    figures["bytes_read_protected"] = sum(
        way["bytes"] for name, one in raw.items() if name.startswith("protected") for way in one["ways"]
    )
    n = {"enclaves": len(MODES) * len(subjects) * len(kinds)}
    write_result(
        "isolation",
        figures=figures,
        raw=raw,
        seeds=[],
        n=n,
        path=result_path("isolation", quick=args.quick, out=args.out),
    )


if __name__ == "__main__":
    main()
