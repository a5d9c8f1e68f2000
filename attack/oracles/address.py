"""Opens an oracle by its address, as given on the command line and in campaign files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from variegate.attack.oracle import Oracle
from variegate.attack.oracles.http import HttpOracle
from variegate.attack.oracles.http_line import Trust
from variegate.attack.oracles.patience import NONE, Patience
from variegate.attack.oracles.port import PortOracle
from variegate.attack.oracles.socket import SocketOracle
from variegate.keys.errors import MisuseError

FORMS = "http://HOST:PORT[/MODEL], https://HOST:PORT[/MODEL], socket:PATH, device:FOLDER or vehicle:FOLDER[?camera=...]"
"""How a device may be named."""
_NUMBERS = r"(?:classes=(?P<classes>[0-9]{1,9}))?&?(?:batch=(?P<batch>[0-9]{1,9}))?"


@contextmanager
def open_oracle(uri: str, *, patience: Patience = NONE, trust: Trust | None = None) -> Iterator[Oracle]:
    """A device by its name, until the end of the block.

    Args:
        uri: `http://HOST:PORT[/MODEL]` or `https://…`, with `?classes=N&batch=N` where the server does not say;
            `socket:PATH` of a label socket; `device:FOLDER` of a simulated device, which is turned on;
            `vehicle:FOLDER` of one behind a camera, with options of `vehicle_address.vehicle` after a question mark.
        patience: How long a rate or a busy server is waited for.
        trust: For https.

    Raises:
        MisuseError: It is not such an address, or the device is not there.
        RefusedError: It does not lead to such a device, or its copy is refused.
        DeviceError: It cannot be reached, or does not boot.
    """
    scheme, _, rest = uri.partition(":")
    if trust is not None and scheme != "https":
        raise MisuseError("certificates are for an https:// address")
    match scheme:
        case "http" | "https":
            plain, _, query = uri.partition("?")
            with HttpOracle(plain, patience=patience, trust=trust, **_numbers(query)) as device:
                yield device
        case "socket" if rest.isprintable() and rest:
            with SocketOracle(Path(rest), patience=patience) as behind:
                yield behind
        case "device" if rest.isprintable() and rest:
            # Attacks over a network, or on copies in this process, need no device.
            from variegate.device_sim.hosting import open_port  # noqa: PLC0415

            with open_port(rest) as port:
                yield PortOracle(port, patience=patience)
        case "vehicle" if rest.isprintable() and rest:
            # Its camera draws pictures.
            from variegate.attack.oracles.vehicle_address import vehicle  # noqa: PLC0415

            place, _, query = rest.partition("?")
            with open_oracle(f"device:{place}", patience=patience) as inside:
                yield vehicle(inside, query)
        case _:
            raise MisuseError(f"{_shown(uri)} names no device", hint=f"write {FORMS}")


def _numbers(query: str) -> dict[str, int]:
    """The part after the question mark."""
    match = re.fullmatch(_NUMBERS, query)
    if match is None:
        raise MisuseError("after the ? of a device's address only classes=N and batch=N are allowed")
    return {name: int(number) for name, number in match.groupdict().items() if number is not None}


def _shown(uri: str) -> str:
    """A name as it can be shown; a long text is cut."""
    return repr(uri if len(uri) <= 80 else uri[:77] + "...")  # noqa: PLR2004
