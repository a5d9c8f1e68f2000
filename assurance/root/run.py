"""Runs the attacks on a device's machine, this one or another, and judges their reports."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assurance.root.attacker.attacks import FAILED, IMPOSSIBLE, SUCCEEDED, Result
from assurance.root.device import Made
from variegate.keys.errors import DeviceError

ARCHIVE = "root.pyz"
_CARRIED = "assurance/root/attacker"


def archive() -> bytes:
    """The attacks as a zip file that any Python 3.11 runs: `python3 root.pyz --help`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for folder in ("assurance/", "assurance/root/", f"{_CARRIED}/"):
            file.writestr(folder, b"")  # folders without an __init__ are found by their entry
        for path in sorted((Path(__file__).parent / "attacker").glob("*.py")):
            file.writestr(f"{_CARRIED}/{path.name}", path.read_bytes())
        file.writestr("__main__.py", "import sys\nfrom assurance.root.attacker.main import main\nsys.exit(main())\n")
    return out.getvalue()


@dataclass(frozen=True)
class Target:
    """A machine with a serving device.

    Attributes:
        run: Runs `root.pyz` there as root, with these arguments and this standard input; gives its standard output.
        device: The device that serves there.
    """

    run: Callable[[list[str], str], str]
    device: Made


@dataclass(frozen=True)
class Report:
    """The results of all attacks.

    Attributes:
        results: Of each, in order.
        left_out: Names of those that were not tried.
    """

    results: list[Result]
    left_out: list[str] = field(default_factory=list)

    def names(self, result: str) -> list[str]:
        """Those that ended like this: `succeeded`, `failed` or `impossible`."""
        return [one.name for one in self.results if one.result == result]

    def counts(self) -> dict[str, int]:
        """How many ended how."""
        return {result: len(self.names(result)) for result in (SUCCEEDED, FAILED, IMPOSSIBLE)}

    def to_json(self) -> dict[str, Any]:
        """JSON's types."""
        return {**asdict(self), "counts": self.counts()}

    def table(self) -> str:
        """For people."""
        rows = [
            f"{one.row:9} {one.name:18} {one.result:10} {one.windows:5} {one.seconds:6.1f} s  {one.detail}"
            for one in self.results
        ]
        return "\n".join([*rows, *([f"not tried: {', '.join(self.left_out)}"] if self.left_out else [])])


def attack(target: Target, *, only: list[str] | None = None, machine: bool = False, slow: float = 1.0) -> Report:
    """Has a device attacked.

    Args:
        target: Where it serves.
        only: Names of the attacks; all by default.
        machine: Whether also those that touch settings of the whole machine: only where nothing else lives.
        slow: How many times longer to wait, as under emulation.

    Raises:
        DeviceError: The attacks did not run.
    """
    arguments = [*(["--only", *only] if only else []), *(["--machine"] if machine else []), "--slow", str(slow)]
    said = target.run(arguments, needles_of(target.device))
    try:
        values = json.loads(said.strip().splitlines()[-1])
        report = Report([Result(**one) for one in values["results"]], values["left_out"])
    except (ValueError, LookupError, TypeError) as error:
        raise DeviceError("the attacks gave no report", hint=said[-300:]) from error
    return judged(report, target.device)


def needles_of(device: Made) -> str:
    """The windows that the attacks search for, so that they can report what they found."""
    return json.dumps({"secrets": [window.hex() for window in device.secrets]})


def judged(report: Report, device: Made) -> Report:
    """Compares the claims of attacks with the truth: recovered signs must be the copy's, or the attack failed."""
    return replace(report, results=[_judged(one, device) for one in report.results])


def _judged(result: Result, device: Made) -> Result:
    if "signs" not in result.found:
        return result
    claimed = {int(pixel): signs for pixel, signs in result.found["signs"].items()}
    right = sum(1 for pixel, signs in claimed.items() if signs == _signs_at(pixel, device).tolist())
    ok = result.result == SUCCEEDED and right >= max(1, len(claimed) * 3 // 4)
    detail = f"{result.detail}; the signs of {right} of {len(claimed)} pixels are right"
    return replace(result, result=SUCCEEDED if ok else FAILED, detail=detail)


def _signs_at(pixel: int, device: Made) -> NDArray[np.int8]:
    """The signs that the messages of every class have at a pixel (flat, of C x H x W)."""
    (down, across), signs = device.grid, device.signs
    _, _, height, width = signs.shape
    channel, rest = divmod(pixel, height * down * width * across)
    y, x = divmod(rest, width * across)
    return signs[:, channel, y // down, x // across]
