"""Mutations that know a format, so that they reach the layers below the outermost."""

from __future__ import annotations

import json
import zlib
from random import Random
from typing import Any, Final

import cbor2

from assurance.fuzz.target import Mutate, Plain
from variegate.keys import cbor

_NUMBERS: Final = (0, 1, 2, 3, 4, 8, 16, 23, 24, 255, 256, 65535, 1 << 24, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63)
_OTHERS: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    b"",
    "",
    [],
    {},
    -1,
    "\u200b",
    "\x00",
    "é😀",
    b"\x01" * 33,
    1.5,
    float("inf"),
)
_TOML: Final = (
    *(b"0", b"1", b"-1", b"1.0", b"1e-9", b"86400.0", b"inf", b"nan", b"16", b"1048576", b"9223372036854775808"),
    *(b"true", b"false", b"[]", b"[[]]", b"{}", b'""', b'"x"', b'"\\U0001F600"', b'"\\u00e9"', b"'\\'", b"1979-05-27"),
    b'"' + b"0f" * 32 + b'"',
)
_BLIND: Final = 0.25
"""Share of mutations that know nothing."""
_DEEPER: Final = 0.7


def of_cbor(data: bytes, most: int, chance: Random, plain: Plain) -> bytes:
    """Changes one or a few values of a CBOR item, also inside of byte strings that hold CBOR."""
    value = _loads(data)
    if value is _NOT_CBOR or chance.random() < _BLIND:
        return plain(data, most)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        value = _changed(value, chance, plain)
    return _fitting(_dumps(value), data, most, plain)


def of_json(data: bytes, most: int, chance: Random, plain: Plain) -> bytes:
    """Changes values of a JSON document."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return plain(data, most)
    if chance.random() < _BLIND:
        return plain(data, most)
    for _ in range(chance.choice((1, 1, 2))):
        value = _changed(value, chance, plain)
    return _fitting(_json(value), data, most, plain)


def of_toml(data: bytes, most: int, chance: Random, plain: Plain) -> bytes:
    """Changes lines of a TOML document, or the value on one."""
    lines = data.splitlines(keepends=True)
    if not lines or chance.random() < 2 * _BLIND:
        return plain(data, most)
    at = chance.randrange(len(lines))
    key, found, value = lines[at].rstrip(b"\n").partition(b" = ")
    match chance.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(chance.randrange(len(lines)), lines[at])
        case 2 if found:
            lines[at] = key + b" = " + chance.choice(_TOML) + b"\n"
        case 3 if found:
            lines[at] = key + b" = [" + b", ".join([value, *chance.choices(_TOML, k=chance.randrange(4))]) + b"]\n"
        case 4 if found:
            lines[at] = key + chance.choice((b".a = ", b' . "" = ', b" = ")) + plain(value, 256) + b"\n"
        case _:
            lines.append(chance.choice((b"[a]\n", b"[[a]]\n", b"a = 1\n", b'"\\n" = 1\n', b"schema.a = 1\n")))
    return _fitting(b"".join(lines), data, most, plain)


def behind(length: int, inner: Mutate) -> Mutate:
    """Leaves a prefix of so many bytes to chance, and the rest to `inner`."""

    def mutate(data: bytes, most: int, chance: Random, plain: Plain) -> bytes:
        if len(data) < length or most <= length or chance.random() < 0.1:
            return plain(data, most)
        return data[:length] + inner(data[length:], most - length, chance, plain)

    return mutate


def compressed(data: bytes, most: int, chance: Random, plain: Plain) -> bytes:
    """Changes the content of a gzip or zlib stream that follows one byte."""
    if len(data) < 2 or chance.random() < _BLIND:
        return plain(data, most)
    bits = 31 if data[0] & 1 else 15
    try:
        inside = zlib.decompressobj(bits).decompress(data[1:], 1 << 16)
    except zlib.error:
        return plain(data, most)
    coder = zlib.compressobj(9, wbits=bits)
    changed = plain(inside, 1 << 12) * chance.choice((1, 1, 1, 16, 512))
    return _fitting(data[:1] + coder.compress(changed) + coder.flush(), data, most, plain)


class _Marker:
    pass


_NOT_CBOR: Final = _Marker()


def _loads(data: bytes) -> Any:
    """Only data that our own decoder accepts is decoded: cbor2 builds odd objects from hostile tags."""
    try:
        return cbor.decode(data, limit=1 << 20)
    except Exception:  # noqa: BLE001 - a finding elsewhere is not to end the mutation
        return _NOT_CBOR


def _dumps(value: Any) -> bytes:
    try:
        return cbor2.dumps(value, canonical=True)
    except Exception:  # noqa: BLE001 - values that CBOR cannot hold
        return b""


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, default=lambda found: found.hex() if isinstance(found, bytes) else None).encode()
    except (TypeError, ValueError, RecursionError):
        return b""


def _fitting(made: bytes, data: bytes, most: int, plain: Plain) -> bytes:
    return made if 0 < len(made) <= most else plain(data, most)


def _changed(value: Any, chance: Random, plain: Plain) -> Any:
    if isinstance(value, list) and value and chance.random() < _DEEPER:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(value[at], chance, plain), *value[at + 1 :]]
    if isinstance(value, dict) and value and chance.random() < _DEEPER:
        key = chance.choice(list(value))
        return {**value, key: _changed(value[key], chance, plain)}
    if isinstance(value, bytes) and len(value) > 2 and chance.random() < _DEEPER:
        inner = _loads(value)
        if isinstance(inner, list | dict):
            return _dumps(_changed(inner, chance, plain))
    return _replaced(value, chance, plain)


def _replaced(value: Any, chance: Random, plain: Plain) -> Any:  # noqa: PLR0911 - a table
    if chance.random() < 0.2:
        return chance.choice((*_NUMBERS, *_OTHERS))
    match value:
        case bool() | None:
            return chance.choice((True, False, None, 0, 1))
        case int():
            return chance.choice((value + 1, value - 1, -value, value * 2, *chance.choices(_NUMBERS, k=4)))
        case bytes():
            return chance.choice((plain(value, 512), value[:-1], value + b"\0", value * 2))
        case str():
            drawn = plain(value.encode(errors="replace"), 256).decode(errors="replace")
            return chance.choice((drawn, value * 9, value[:-1], value + "x"))
        case list():
            return _list(value, chance)
        case dict():
            return _dict(value, chance)
    return value


def _list(value: list[Any], chance: Random) -> list[Any]:
    out = list(value)
    match chance.randrange(5):
        case 0 if out:
            del out[chance.randrange(len(out))]
        case 1 if out:
            out.insert(chance.randrange(len(out)), chance.choice(out))
        case 2:
            chance.shuffle(out)
        case 3:
            out = out * chance.choice((2, 8, 64)) if len(out) < 64 else out
        case _:
            out.append(chance.choice((*_NUMBERS, *_OTHERS)))
    return out


def _dict(value: dict[Any, Any], chance: Random) -> dict[Any, Any]:
    out = dict(value)
    if out and chance.random() < 0.5:
        del out[chance.choice(list(out))]
    else:
        key = chance.choice((16, 17, -1, 1 << 40, "x", "data", "parameters", "schema"))
        out[key] = chance.choice((*_NUMBERS, *_OTHERS))
    return out
