"""The interface of a device to its chip, and the choice of chip for a folder: one of files, or one over a TPM 2.0.

    chip.json   {"schema": 1, "tcti": "swtpm:path=/run/x.sock"}; where there is none, the chip is of files
                "launch": the launch digest that the chip was made under, hexadecimal, when its folder was moved to a
                machine that it is still to be bound to

The description is not secret, and security does not depend on it: another TPM does not unseal this one's secrets, and a
bound chip does not open under any other launch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from variegate.device_sim.fuses import Fuses
from variegate.device_sim.tpm import checked_tcti
from variegate.device_sim.tpm_chip import TpmChip, is_bound, launch_digest
from variegate.keys.errors import DeviceError, MisuseError, RefusedError
from variegate.keys.files import PUBLIC, read_capped, write_atomic
from variegate.keys.primitives import HASH_BYTES

_DESCRIPTION = "chip.json"
_MAX_DESCRIPTION_BYTES = 4096


class Chip(Protocol):
    """Counters that only rise, and burnt values. Off after `close`, and after a failed write, until opened again."""

    def counter(self, name: str) -> int:
        """Value of a counter; 0 for one never advanced.

        Raises:
            MisuseError: `name` is not 1 to 48 bytes.
            DeviceError: The chip is off, or another process turned it on.
        """
        ...

    def advance(self, name: str, value: int) -> None:
        """Raises a counter, durable before it returns; a lower or equal value changes nothing.

        Raises:
            DeviceError: It could not be made durable.
            MisuseError: The name or the value is out of its range.
        """
        ...

    def reserve(self, name: str, least: int, most: int, limit: int) -> int:
        """Raises a counter by `most`, or by as much as `limit` leaves, durable before it returns.

        Returns:
            By how much; 0, and nothing changed, when `limit` leaves less than `least`.

        Raises:
            DeviceError: It could not be made durable.
            MisuseError: The name or the limit is out of its range.
        """
        ...

    def load(self, name: str) -> bytes | None:
        """A burnt value, or None when there is none.

        Raises:
            DeviceError: The chip failed.
        """
        ...

    def burn(self, name: str, value: bytes) -> None:
        """Replaces a value whole, durable before it returns.

        Raises:
            DeviceError: The chip failed.
        """
        ...

    def burn_secret(self, name: str, value: bytes) -> None:
        """Replaces a value that only `open_secret` gives back, durable before it returns.

        Raises:
            DeviceError: The chip failed.
        """
        ...

    def open_secret(self, name: str) -> int:
        """A descriptor from which a secret can be read once; the caller closes it.

        Raises:
            DeviceError: There is no such secret, or the chip failed or refuses.
        """
        ...

    @property
    def boot(self) -> bytes | None:
        """Measurement of the machine's boot, 32 bytes, if the chip is bound to it.

        Raises:
            DeviceError: The chip failed.
        """
        ...

    def close_boot(self) -> bool:
        """Gives secrets to nobody but this process until the machine starts again.

        Binds a chip that was moved to this machine to the machine's boot, once and for good.

        Returns:
            Whether the chip can do that.

        Raises:
            DeviceError: The chip failed.
        """
        ...

    def close(self) -> None:
        """Turns the chip off."""
        ...


def open_chip(folder: Path, measure: Callable[[], Mapping[str, bytes]]) -> Chip:
    """Turns a folder's chip on.

    Args:
        folder: Of the chip.
        measure: Gives what was measured at launch, by name, 32 bytes each; a chip of files does not ask.

    Raises:
        DeviceError: Another process holds it, it is damaged, or its TPM refuses or is not reached.
        MisuseError: Its TPM needs an extra that is not there.
    """
    if not (folder / _DESCRIPTION).exists():
        return Fuses(folder)
    tcti, launch = _described(folder / _DESCRIPTION)
    measured = measure()
    if launch is not None and is_bound(folder):  # `close_boot` has done it; the description is left to mend
        _describe(folder, tcti)
        launch = None
    return TpmChip(folder, tcti, measured, launch=launch)


def moved(folder: Path, tcti: str, measured: Mapping[str, bytes]) -> None:
    """Describes a chip whose folder was copied to another machine; there `close_boot` binds it.

    Args:
        folder: Of the copied chip.
        tcti: How its TPM is reached there.
        measured: What it was made under, by name, 32 bytes each.

    Raises:
        DeviceError: It is a chip of files, or damaged.
        MisuseError: The folder cannot be written.
    """
    if not (folder / _DESCRIPTION).exists():
        raise DeviceError(
            "the device's chip is a folder of files: whoever has them has its key", hint="device new --tpm"
        )
    _described(folder / _DESCRIPTION)
    _describe(folder, tcti, launch_digest(measured))


@contextmanager
def made_chip(folder: Path, tcti: str | None, measure: Callable[[], Mapping[str, bytes]]) -> Iterator[Chip]:
    """Makes a chip, on for the block; one that fails leaves nothing in its TPM.

    Args:
        folder: An empty folder.
        tcti: How its TPM is reached; None for a chip of files.
        measure: As `open_chip`.

    Raises:
        DeviceError: The TPM refuses or is not reached, or the folder cannot be written.
        MisuseError: `tcti` names no TPM, or an extra is not there.
    """
    if tcti is None:
        with Fuses(folder) as fuses:
            yield fuses
        return
    with TpmChip.make(folder, tcti, measure()) as chip:
        try:
            _describe(folder, tcti)
            yield chip
        except BaseException:
            chip.scrap()
            raise


def _describe(folder: Path, tcti: str, launch: bytes | None = None) -> None:
    facts = {"schema": 1, "tcti": checked_tcti(tcti), **({} if launch is None else {"launch": launch.hex()})}
    text = json.dumps(facts, sort_keys=True) + "\n"
    write_atomic(folder / _DESCRIPTION, text.encode(), mode=PUBLIC, overwrite=True)


def _described(path: Path) -> tuple[str, bytes | None]:
    """The TCTI in a description, which is hostile, and the launch digest if it was moved."""
    try:
        match json.loads(read_capped(path, limit=_MAX_DESCRIPTION_BYTES)):
            case {"schema": 1, "tcti": str(tcti), **rest} if not rest:
                return checked_tcti(tcti), None
            case {"schema": 1, "tcti": str(tcti), "launch": str(launch), **rest} if not rest:
                if len(digest := bytes.fromhex(launch)) == HASH_BYTES:
                    return checked_tcti(tcti), digest
    except (ValueError, RecursionError, MisuseError, RefusedError):
        pass
    raise DeviceError("the chip's description is damaged", hint=f"{_DESCRIPTION} names the device's TPM")
