"""The list of a fleet: a CSV of buyers and their devices."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from variegate.keys.errors import MisuseError, VariegateError
from variegate.keys.identity import DevicePublic

_COLUMNS = {"buyer", "device", "epoch", "security_counter"}
_MAX_BUYER = 128
_MAX_NUMBER = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class FleetLine:
    """One line of a fleet's list.

    Attributes:
        buyer: Buyer id.
        device: The device's public identity.
        epoch: The buyer's key epoch.
        security_counter: Rollback counter; None for one above all that the registry has for the device, or 0.
    """

    buyer: str
    device: DevicePublic
    epoch: int = 0
    security_counter: int | None = None


def read_list(path: Path) -> list[FleetLine]:
    """Reads a CSV: columns buyer, device (a path from the CSV's folder), perhaps epoch, security_counter.

    Raises:
        MisuseError: Naming the line, when anything is missing, unknown, double or out of range.
    """
    try:
        # Spreadsheets write a byte-order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if not {"buyer", "device"} <= set(columns) <= _COLUMNS or len(set(columns)) != len(columns):
                raise MisuseError(
                    f"{path}: columns are {', '.join(sorted(columns)) or 'missing'}",
                    hint="needed are buyer, device; allowed are epoch, security_counter",
                )
            reader.fieldnames = columns
            out = [_read_line(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise MisuseError(f"cannot read {path}: {_reason(error)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise MisuseError(f"{path} cannot be read as CSV") from error
    if not out:
        raise MisuseError(f"{path}: the list is empty", hint="give each device a line")
    if len({(w.device.ueid, w.epoch) for w in out}) != len(out):
        raise MisuseError(f"{path}: a device is in it twice for one epoch")
    return out


def _read_line(path: Path, line: int, row: dict[str, str]) -> FleetLine:
    try:
        if None in row or None in row.values():
            raise MisuseError("wrong number of fields")
        cells = {name: cell.strip() for name, cell in row.items()}
        numbers = {n: check_number(int(cells[n]), n) for n in ("epoch", "security_counter") if cells.get(n)}
        buyer = check_buyer(cells["buyer"])
        device = _read_device(path.parent / cells["device"])
        return FleetLine(buyer=buyer, device=device, **numbers)
    except ValueError as error:
        raise MisuseError(f"{path}, line {line}: a number or a file's name cannot be read") from error
    except VariegateError as error:
        raise MisuseError(f"{path}, line {line}: {error.message}", hint=error.hint) from error


def _read_device(path: Path) -> DevicePublic:
    try:
        return DevicePublic.from_json(path.read_bytes())
    except OSError as error:
        raise MisuseError(f"cannot read {path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def check_number(value: int, name: str) -> int:
    """A number that manifest and registry can hold, 0 to 2^63 - 1.

    Raises:
        MisuseError: For any other, with its name.
    """
    if not 0 <= value <= _MAX_NUMBER:
        raise MisuseError(f"{name} must lie in 0..{_MAX_NUMBER}")
    return value


def check_buyer(buyer: str) -> str:
    """A buyer id of 1 to 128 printable characters.

    Raises:
        MisuseError: For any other.
    """
    if not 1 <= len(buyer) <= _MAX_BUYER or not buyer.isprintable():
        raise MisuseError(f"a buyer id has 1 to {_MAX_BUYER} printable characters")
    return buyer
