"""Commands in processes of their own whose memory is bounded, and told."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ADDRESS_SPACE = 8 << 30
"""What ends a command that a bomb goes off in, before it ends the machine."""
_PROGRAM = """
import sys
from variegate.cli.main import main
status = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(peak, file=sys.stderr)
sys.exit(status)
"""


@dataclass(frozen=True)
class Ran:
    """What came of a command.

    Attributes:
        status: Its exit status.
        out: What it said to stdout.
        err: To stderr.
        peak: The most memory that it held at once, bytes.
    """

    status: int
    out: str
    err: str
    peak: int


def variegate(*arguments: str | Path, folder: Path | None = None) -> Ran:
    """Runs `variegate` and sees how much memory it takes."""

    def bounded() -> None:
        # The hard limit stays: the command may give a child of its own more.
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))

    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        preexec_fn=bounded,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    found = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    # Without a word it was ended: nothing was small about it.
    peak = int(found[1]) << 10 if found else ADDRESS_SPACE
    return Ran(done.returncode, done.stdout, done.stderr, peak)
