"""The device's policy: how its enclave is isolated. A small TOML file that is measured before every launch.

schema = 1
isolation = "process"     # or "none": in the caller's process
secret_pages = true       # weights and keys in memfd_secret pages
strict = false            # refuse to serve unless every protection in `require` is on
require = []              # names as `variegate device protections` lists them; "host" for all of host-*
ram_mib = 1024            # what the enclave may take of ordinary memory
hang_s = 30.0             # an answer that takes longer counts as a hang; so much for every 64 frames of a batch
restarts = 3              # restarts allowed ...
restart_window_s = 60.0   # ... within this time; beyond it the enclave stays down
debug = false             # leaves the process open to debuggers; the evidence says so
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from typing import Any

from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.primitives import sha256

SCHEMA = 1
MAX_POLICY_BYTES = 16 * 1024
ISOLATIONS = ("process", "none")
_LEAST_RAM_MIB, _MOST_RAM_MIB = 16, 1 << 20
_MOST_RESTARTS = 1000
_MOST_SECONDS = 86_400.0
_MAX_NAMES, _MAX_NAME = 32, 32


@dataclass(frozen=True, kw_only=True)
class DevicePolicy:
    """How a device isolates its enclave; the module's text says what each key means.

    Attributes:
        isolation: "process" or "none".
        secret_pages: Whether weights and keys are to lie in secret pages.
        strict: Whether a protection in `require` that is not on refuses to serve.
        require: Names of protections, and of groups of them (`attest.groups`).
        ram_mib: Ordinary memory of the enclave, MiB.
        hang_s: Seconds until an unanswered query of up to 64 frames counts as a hang; larger ones get more.
        restarts: Restarts allowed within `restart_window_s`.
        restart_window_s: Seconds.
        debug: Whether debuggers may look in.
    """

    isolation: str = "process"
    secret_pages: bool = True
    strict: bool = False
    require: tuple[str, ...] = ()
    ram_mib: int = 1024
    hang_s: float = 30.0
    restarts: int = 3
    restart_window_s: float = 60.0
    debug: bool = False

    @property
    def digest(self) -> bytes:
        """SHA-256 of `to_toml`: the measurement."""
        return sha256(self.to_toml())

    def to_toml(self) -> bytes:
        """The file; one text for one policy."""
        values: dict[str, Any] = {"schema": SCHEMA, **asdict(self), "require": list(self.require)}
        # JSON's spelling of texts, numbers, true and false is TOML's, too, except for characters written as surrogates.
        return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()).encode()

    @classmethod
    def from_toml(cls, data: bytes) -> DevicePolicy:
        """Reads a policy; keys left out have their defaults.

        Raises:
            RefusedError: `TOO_LARGE` or `MALFORMED`, naming the key.
        """
        if len(data) > MAX_POLICY_BYTES:
            raise RefusedError(Refusal.TOO_LARGE, f"device policy exceeds {MAX_POLICY_BYTES} bytes")
        try:
            values = tomllib.loads(data.decode())
        except (ValueError, RecursionError):
            raise RefusedError(Refusal.MALFORMED, "device policy is not valid TOML") from None
        if values.pop("schema", None) is not SCHEMA:
            raise _wrong("schema", f"must be {SCHEMA}")
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                raise _wrong(key, "is not known")
        for key, value in values.items():
            _check(key, value)
        if "require" in values:
            values["require"] = tuple(values["require"])
        return cls(**values)


def _check(key: str, value: object) -> None:
    match key:
        case "isolation":
            good, range_ = value in ISOLATIONS, f"one of {', '.join(ISOLATIONS)}"
        case "secret_pages" | "strict" | "debug":
            good, range_ = isinstance(value, bool), "true or false"
        case "require":
            good, range_ = _is_names(value), "a list of names of protections"
        case "ram_mib":
            good, range_ = _within(value, _LEAST_RAM_MIB, _MOST_RAM_MIB), f"{_LEAST_RAM_MIB} to {_MOST_RAM_MIB}"
        case "restarts":
            good, range_ = _within(value, 0, _MOST_RESTARTS), f"0 to {_MOST_RESTARTS}"
        case _:
            good = isinstance(value, float) and 0 < value <= _MOST_SECONDS
            range_ = f"seconds with a decimal point, up to {_MOST_SECONDS:.0f}"
    if not good:
        raise _wrong(key, f"must be {range_}")


def _is_names(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_NAMES
        and all(isinstance(name, str) and 1 <= len(name) <= _MAX_NAME and name.isprintable() for name in value)
    )


def _within(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _wrong(key: str, what: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED, f"device policy: {key!r} {what}"[:200])
