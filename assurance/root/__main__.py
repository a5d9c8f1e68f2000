"""Root's attacks on a real device on this machine, which is open.

    python -m assurance.root [--quick] [--json] [--only NAME ...]

Run it as root. The device is served by the real command in namespaces of its own; attacks on settings of the whole
machine run only with `--machine`: use it only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from assurance.root.device import made, served
from assurance.root.run import ARCHIVE, Target, archive, attack
from testbed.bases import base, images
from variegate.keys.errors import MisuseError

QUICK = ("read_mem", "read_pidfd", "write_code", "fuses")


def main() -> int:
    """Makes a device, attacks it, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}; a smoke test")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these attacks alone")
    parser.add_argument("--machine", action="store_true", help="also attacks on settings of the whole machine")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise MisuseError("these attacks need root", hint="run it as root")
    with TemporaryDirectory(prefix="variegate-") as folder:
        device = made(Path(folder) / "device", base(Path(folder)), images(64))
        carried = Path(folder) / ARCHIVE
        carried.write_bytes(archive())
        with served(device) as run:
            target = Target(lambda arguments, stdin: run([str(carried), *arguments], stdin), device)
            report = attack(target, only=list(QUICK) if args.quick else args.only, machine=args.machine)
    sys.stdout.write((json.dumps(report.to_json(), indent=2) if args.json else report.table()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
