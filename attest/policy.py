"""A verifier's policy: reference values and rules for evidence, in a TOML file.

schema = 1
profiles = ["tag:variegate.example,2026:simulated-device"]   # kinds of device accepted, by name
require = ["isolation", "seccomp"]                           # protections that must be on; "host": all of host-*
debug = false                                                # whether a device open to debuggers passes
clock_skew_s = 300                                           # how far a device's clock may be off

[measurements]                                               # these names and no others, any of the values
runtime = ["9f86d0..."]
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from variegate.attest.evidence import MAX_NAMES, Evidence
from variegate.attest.groups import HOST, members, of_host
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.fields import MAX_TEXT
from variegate.keys.primitives import HASH_BYTES

SCHEMA = 1
MAX_POLICY_BYTES = 256 * 1024
CLOCK_SKEW_S = 300
_MAX_SKEW_S = 86_400
_MAX_VALUES = 64
_KEYS = ("schema", "profiles", "require", "debug", "clock_skew_s", "measurements")


@dataclass(frozen=True, kw_only=True)
class AppraisalPolicy:
    """Reference values and rules.

    Attributes:
        profiles: Profiles accepted; a simulated device passes only where its profile is named.
        measurements: For each name that evidence must hold the values accepted, 32 bytes each. Evidence that holds
            any other name is refused, because it has no reference value.
        require: Protections that must be on, and groups of them (`groups`).
        debug: Whether a device that is open to debuggers passes.
        clock_skew_s: Seconds by which a device's clock may be off.
    """

    profiles: tuple[str, ...]
    measurements: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    require: tuple[str, ...] = ()
    debug: bool = False
    clock_skew_s: int = CLOCK_SKEW_S

    @classmethod
    def of(cls, evidence: Evidence) -> AppraisalPolicy:
        """The policy that this evidence meets: its profile, its measurements, and the protections that are on.

        Debuggers are refused, even when this evidence would need them. The group `host` is required if all of it is on,
        and otherwise no part of it: a part stops nobody, and changes with the machine's settings.
        """
        states = {claim.name: claim.state for claim in evidence.protections}
        on = {name for name, state in states.items() if state == "on"}
        whole = on.issuperset(members((HOST,), states))
        require = {name for name in on if not of_host(name)} | ({HOST} if whole else set())
        return cls(
            profiles=(evidence.profile,),
            measurements={name: (value,) for name, value in evidence.measurements.items()},
            require=tuple(sorted(require)),
        )

    def with_values_of(self, evidence: Evidence) -> AppraisalPolicy:
        """This policy, which takes the measurements of this evidence besides; nothing else changes."""
        more = dict(self.measurements)
        for name, value in evidence.measurements.items():
            if value not in more.get(name, ()):
                more[name] = (*more.get(name, ()), value)
        return replace(self, measurements=more)

    def to_toml(self) -> bytes:
        """The file, sorted."""
        lines = [
            f"schema = {SCHEMA}",
            f"profiles = {_toml(list(self.profiles))}",
            f"require = {_toml(list(self.require))}",
            f"debug = {_toml(self.debug)}",
            f"clock_skew_s = {self.clock_skew_s}",
            "",
            "[measurements]",
        ]
        for name, values in sorted(self.measurements.items()):
            lines.append(f"{_toml(name)} = {_toml([value.hex() for value in values])}")
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def from_toml(cls, data: bytes) -> AppraisalPolicy:
        """Reads a policy.

        Raises:
            RefusedError: `TOO_LARGE` or `MALFORMED`, naming the key by its path.
        """
        if len(data) > MAX_POLICY_BYTES:
            raise RefusedError(Refusal.TOO_LARGE, f"appraisal policy exceeds {MAX_POLICY_BYTES} bytes")
        try:
            values = tomllib.loads(data.decode())
        except (ValueError, RecursionError):
            raise RefusedError(Refusal.MALFORMED, "appraisal policy is not valid TOML") from None
        for key in values:
            if key not in _KEYS:
                raise _wrong(key, "is not known")
        schema = values.get("schema")
        if type(schema) is not int or schema != SCHEMA:
            raise _wrong("schema", f"must be {SCHEMA}")
        skew = values.get("clock_skew_s", CLOCK_SKEW_S)
        if type(skew) is not int or not 0 <= skew <= _MAX_SKEW_S:
            raise _wrong("clock_skew_s", f"must be whole seconds up to {_MAX_SKEW_S}")
        debug = values.get("debug", False)
        if not isinstance(debug, bool):
            raise _wrong("debug", "must be true or false")
        measurements = values.get("measurements")
        if not isinstance(measurements, dict) or not 1 <= len(measurements) <= MAX_NAMES:
            # A policy without reference values would take any code.
            raise _wrong("measurements", "is to hold one name at least")
        return cls(
            profiles=_texts("profiles", values.get("profiles"), least=1),
            measurements={name: _hashes(f"measurements.{name}", value) for name, value in measurements.items()},
            require=_texts("require", values.get("require", []), least=0),
            debug=debug,
            clock_skew_s=skew,
        )


def _toml(value: object) -> str:
    """JSON's spelling of texts, lists and booleans is TOML's, too, except for characters written as surrogates."""
    return json.dumps(value, ensure_ascii=False)


def _texts(path: str, value: Any, *, least: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not least <= len(value) <= MAX_NAMES:
        raise _wrong(path, f"must be a list of {least} to {MAX_NAMES} texts")
    for index, text in enumerate(value):
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_TEXT or not text.isprintable():
            raise _wrong(f"{path}[{index}]", f"must be 1 to {MAX_TEXT} printable characters")
    return tuple(value)


def _hashes(path: str, value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MAX_VALUES:
        raise _wrong(path, f"must be a list of 1 to {_MAX_VALUES} values")
    return tuple(_hash(f"{path}[{index}]", item) for index, item in enumerate(value))


def _hash(path: str, value: Any) -> bytes:
    if isinstance(value, str) and len(value) == 2 * HASH_BYTES:
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise _wrong(path, f"must be {2 * HASH_BYTES} hexadecimal digits")


def _wrong(path: str, what: str) -> RefusedError:
    shown = path if path.isprintable() else ascii(path)
    return RefusedError(Refusal.MALFORMED, f"appraisal policy: {shown[:MAX_TEXT]} {what}")
