"""The list of a fleet: a CSV of buyers and their devices."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from variegate.keys.errors import MisuseError, VariegateError
from variegate.keys.identity import DevicePublic

_COLUMNS = {"buyer", "device", "epoch", "security_counter"}
_MAX_BUYER = 128


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One line of a fleet's list.

    Attributes:
        buyer: Buyer id.
        device: The device's public identity.
        epoch: The buyer's key epoch.
        security_counter: Rollback counter.
    """

    buyer: str
    device: DevicePublic
    epoch: int = 0
    security_counter: int = 0


def read_list(path: Path) -> list[Wanted]:
    """Reads a CSV: columns buyer, device (a path from the CSV's folder), perhaps epoch, security_counter.

    Raises:
        MisuseError: Naming the line, when anything is missing, unknown, double or out of range.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            columns = set(reader.fieldnames or ())
            if not {"buyer", "device"} <= columns <= _COLUMNS:
                raise MisuseError(
                    f"{path.name}: columns are {', '.join(sorted(columns)) or 'missing'}",
                    hint="needed are buyer, device; allowed are epoch, security_counter",
                )
            out = [_read_line(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MisuseError(f"{path.name} cannot be read as CSV") from error
    if len({(w.device.ueid, w.epoch) for w in out}) != len(out):
        raise MisuseError(f"{path.name}: a device stands in it twice for one epoch")
    return out


def _read_line(path: Path, line: int, row: dict[str, str]) -> Wanted:
    try:
        if None in row or None in row.values():
            raise MisuseError("wrong number of fields")
        numbers = {n: int(row[n]) for n in ("epoch", "security_counter") if row.get(n)}
        if min(numbers.values(), default=0) < 0:
            raise MisuseError("numbers may not be negative")
        buyer = check_buyer(row["buyer"])
        device = DevicePublic.from_json((path.parent / row["device"]).read_bytes())
        return Wanted(buyer=buyer, device=device, **numbers)
    except (ValueError, OSError) as error:
        raise MisuseError(f"{path.name}, line {line}: a number or the device file cannot be read") from error
    except VariegateError as error:
        raise MisuseError(f"{path.name}, line {line}: {error.message}", hint=error.hint) from error


def check_buyer(buyer: str) -> str:
    """A buyer id of 1 to 128 printable characters.

    Raises:
        MisuseError: For any other.
    """
    if not 1 <= len(buyer) <= _MAX_BUYER or not buyer.isprintable():
        raise MisuseError(f"a buyer id has 1 to {_MAX_BUYER} printable characters")
    return buyer
