"""`variegate device image` and `boot`: a device as a machine of its own, locked against its own root."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from pathlib import Path

from variegate.cli.console import add_json_option, emit, note, table
from variegate.cli.options import whole
from variegate.device_sim.image.build import build
from variegate.device_sim.image.machine import Machine
from variegate.isolation.policy import MAX_POLICY_BYTES, DevicePolicy
from variegate.keys.errors import DeviceError
from variegate.keys.files import read_capped

_LEAST_MIB, _MOST_MIB = 512, 1 << 20


def add_image(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `image`, which has `folder` already."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="IMAGE", help="folder to make; must not be there yet"
    )
    help_policy = 'policy.toml for the image (default: its own); require = ["host"], strict = true belong here'
    parser.add_argument("--policy", type=Path, metavar="PATH", help=help_policy)
    parser.add_argument(
        "--root-shell", action="store_true", help="add a root shell for whoever boots the image; it is measured"
    )
    add_json_option(parser)
    parser.set_defaults(run=_image)


def add_boot(parser: argparse.ArgumentParser) -> None:
    """Fills the parser of `boot`, which has `folder` already: here, the image."""
    parser.add_argument(
        "--tpm-state",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="state folder of the swtpm with which the device was made",
    )
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 for HTTP (default: %(default)s)")
    parser.add_argument("--shell", type=Path, metavar="SOCKET", help="make this Unix socket, with root's shell on it")
    parser.add_argument(
        "--memory",
        type=whole(_LEAST_MIB, _MOST_MIB, "MiB"),
        default=1536,
        metavar="MIB",
        help="memory of the machine (default: %(default)s)",
    )
    parser.set_defaults(run=_boot)


def _image(args: argparse.Namespace) -> int:
    note("fetching Debian's packages, making root file system and boot program")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the unfinished image is removed
    policy = None
    if args.policy is not None:
        policy = DevicePolicy.from_toml(read_capped(args.policy, limit=MAX_POLICY_BYTES))
    facts = build(args.folder, args.out, policy=policy, root_shell=args.root_shell)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    found = {
        "image": str(args.out),
        "bytes": size,
        "kernel": facts.kernel,
        "root": facts.root,
        "root_shell": facts.shell,
        "ueid": facts.ueid,
    }
    emit(found, args.json, lambda: table([(f"{name.replace('_', ' ')}:", str(value)) for name, value in found.items()]))
    note(f"its first boot binds the device's key to it: {args.folder} no longer opens after that")
    return 0


def _boot(args: argparse.Namespace) -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    machine = Machine(args.folder, args.tpm_state, port=args.port, shell=args.shell, memory_mib=args.memory, say=note)
    with machine:
        waiting = threading.Thread(target=_tell, args=(machine,), daemon=True)
        waiting.start()
        while machine.running and not stop.wait(0.2):
            pass
        ended = not stop.is_set()
    note("the machine ended" if ended else "powered off")
    return 1 if ended else 0


def _tell(machine: Machine) -> None:
    with contextlib.suppress(DeviceError):  # whoever waits for its end reports it
        machine.wait()
        note(f"answers at {machine.address}")
