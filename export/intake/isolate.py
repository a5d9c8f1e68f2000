"""Converts a file in a process of its own, under limits, so that hostile input ends in a refusal.

onnx, onnxsim and onnxruntime are native code: an unexpected file may crash them, hang them or make them allocate
without end. Here that ends only a child process. This is not a sandbox: the child has the rights of the user. It does
not run foreign code because nothing that it reads is code (see `guard` and `archive`).

The child reads one request on its standard input and writes one answer on its standard output: a length of
four bytes, a JSON header of that length, then bytes. Nothing of the base touches a disk.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal, cast

from variegate.export.intake.contract import Contract, InputSpec
from variegate.export.intake.guard import Limits
from variegate.keys.errors import DeviceError, Refusal, RefusedError

Kind = Literal["onnx", "pt2"]

_HEADER_BYTES = 4


def convert(data: bytes, kind: Kind, folder: Path | None, spec: InputSpec, limits: Limits) -> tuple[bytes, Contract]:
    """Converts a file to canonical bytes in a child process.

    Args:
        data: The bytes of the file.
        kind: Their kind.
        folder: Where external data of an ONNX file may lie, or None.
        spec: The seller's statements about the base.
        limits: The caps; `process_bytes` and `seconds` are held by the operating system.

    Returns:
        The canonical bytes and their contract.

    Raises:
        RefusedError: As `canonicalise` and `guarded`; `TOO_LARGE` past the time, `MODEL` when the child died.
        DeviceError: No child could be started.
    """
    header = {
        "kind": kind,
        "folder": None if folder is None else str(folder),
        "spec": asdict(spec),
        "limits": asdict(limits),
    }
    # -P: a file named onnx.py in the working folder must not be imported.
    command = [sys.executable, "-P", "-m", "variegate.export.intake.isolate"]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            input=_packed(header, data),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.seconds,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except OSError as error:
        raise DeviceError(f"the conversion cannot be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise RefusedError(
            Refusal.TOO_LARGE,
            f"the conversion took more than {limits.seconds:g} seconds",
            hint="raise Limits.seconds if the base is yours",
        ) from error
    if done.returncode != 0:
        raise RefusedError(
            Refusal.MODEL,
            f"the conversion died ({_cause(done.returncode)})",
            hint="simplify the graph before the export, or raise Limits.process_bytes",
        )
    try:
        answer, result = _unpacked(done.stdout)
        if "refusal" in answer:
            raise RefusedError(Refusal(answer["refusal"]), answer["message"], hint=answer["hint"])
        fields = {name: _tupled(value) for name, value in answer["contract"].items()}
        return result, Contract(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(Refusal.MODEL, "the conversion gave no answer", hint="try it again") from error


def _cause(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"status {status}"


def _packed(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(_HEADER_BYTES, "big") + text + data


def _unpacked(message: bytes) -> tuple[dict[str, Any], bytes]:
    end = _HEADER_BYTES + int.from_bytes(message[:_HEADER_BYTES], "big")
    return json.loads(message[_HEADER_BYTES:end]), message[end:]


def _serve(request: bytes) -> bytes:
    header, data = _unpacked(request)
    spec = InputSpec(**{name: _tupled(value) for name, value in header["spec"].items()})
    limits = Limits(**header["limits"])
    resource.setrlimit(resource.RLIMIT_AS, (limits.process_bytes, limits.process_bytes))
    try:
        result, contract = _converted(data, header, spec, limits)
    except RefusedError as error:
        refusal = {"refusal": error.refusal.value, "message": error.message, "hint": error.hint}
        return _packed(refusal, b"")
    except MemoryError:
        return _packed(_lost(Refusal.TOO_LARGE, "the conversion ran out of memory"), b"")
    except Exception as error:  # noqa: BLE001 - the boundary: the answer is a refusal
        return _packed(_lost(Refusal.MODEL, f"the conversion failed ({type(error).__name__})"), b"")
    return _packed({"contract": asdict(contract)}, result)


def _converted(data: bytes, header: dict[str, Any], spec: InputSpec, limits: Limits) -> tuple[bytes, Contract]:
    if header["kind"] == "pt2":
        from variegate.export.intake.archive import convert_archive  # noqa: PLC0415 - imports torch

        return convert_archive(data, spec, limits)
    # onnxsim imports torch where it is installed, for functions not used here: seconds, and code that
    # a hostile file need not be near. None in sys.modules makes that import fail, which onnxsim allows.
    sys.modules["torch"] = cast("ModuleType", None)
    from variegate.export.intake.canonical import canonicalise  # noqa: PLC0415
    from variegate.export.intake.guard import guarded  # noqa: PLC0415

    folder = header["folder"]
    return canonicalise(guarded(data, None if folder is None else Path(folder), limits), spec, limits)


def _lost(refusal: Refusal, message: str) -> dict[str, str]:
    return {"refusal": refusal.value, "message": message, "hint": "simplify the graph before the export"}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _main() -> None:
    # Libraries print; the answer goes where they cannot.
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with answers:
        answers.write(_serve(sys.stdin.buffer.read()))


if __name__ == "__main__":
    _main()
