"""Reads a `.pt2` archive of `torch.export.save` without running code from it.

In torch 2.13 (torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py) `torch.export.load` can run code
from the archive in these ways:

- `data/sample_inputs/<name>.pt` is given to `torch.load(weights_only=True)`, and when that fails to
  `torch.load(weights_only=False)`: a pickle.
- a weight or constant whose configuration says `use_pickle` is given to `torch.load(weights_only=False)`.
- a constant `opaque_obj_*` is given to `pickle.loads`, and `custom_obj_*` to `torch._C._pickle_load_obj`.
- `data/weights/<name>.pt` and `data/constants/<name>.pt` (the older layout), and the layout of torch 2.7 (an entry
  `version` at the root), are loaded like the sample inputs.
- `data/aotinductor/` holds compiled code, which is loaded as a library.
- in the model's JSON, `expr_str` and the keys of `range_constraints` meet `sympy.sympify`, which is `eval`; a
  node's `target` is looked up attribute by attribute from the module `torch`, which reaches any function;
  names of nodes are written into generated Python source; tree specifications import modules by name.

So no part of the archive is passed on unchanged. A new archive is built from the necessary entries: raw tensors, their
configuration without `use_pickle`, and the JSON, after `graph_json` has checked every string in it. The sample inputs
are left empty (which torch accepts); metadata and guards are left out. Entries that torch would load as code or pickles
are refused; others (extra files, serialisation id) are dropped.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from variegate.export.intake import contract as contracts
from variegate.export.intake.canonical import OPSET, canonicalise
from variegate.export.intake.contract import Contract, InputSpec
from variegate.export.intake.graph_json import checked_program
from variegate.export.intake.guard import Limits, guarded
from variegate.export.intake.probe import Runner, check_parity, random_images, refusing
from variegate.export.intake.tracing import answered, quiet, serialised
from variegate.keys.errors import Refusal, RefusedError

_PAYLOAD = re.compile(r"data/(weights/weight_\d{1,9}|constants/tensor_\d{1,9})", re.ASCII)
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"6\n"}
_DROPPED = (".data/", "data/extra/", "extra/", "data/sample_inputs/")
_ITEM_BYTES = 8
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_JSON = 32 << 20
"""Of all descriptions: read, they take twenty times the memory."""
_PROBES = 12
_EXPORT = "save it again: torch.export.save(torch.export.export(module.eval(), (images,)), path)"


def convert_archive(data: bytes, spec: InputSpec, limits: Limits) -> tuple[bytes, Contract]:
    """Converts an archive to canonical bytes, and checks them against the program in the archive.

    Args:
        data: The bytes of the `.pt2` file.
        spec: The seller's statements about the base.
        limits: The caps.

    Raises:
        RefusedError: `MALFORMED`, `TOO_LARGE`, `MODEL`, `CONTRACT` or `PARITY`.
    """
    safe = rebuilt(data, limits)
    with quiet(), refusing("torch cannot read the archive", _EXPORT, Refusal.MALFORMED):
        program = torch.export.load(io.BytesIO(safe))
        module = program.module(check_guards=False)
    with quiet(), refusing("torch cannot export the archive to ONNX", "export the module to ONNX yourself"):
        made = serialised(torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, verbose=False))
    model = guarded(made, None, limits)
    result, contract = canonicalise(model, spec, limits)
    fixed = contracts.image_input(model).type.tensor_type.shape.dim[0].dim_value or 1
    images = random_images(_PROBES, contract.image_shape)
    check_parity(_answers(module, contracts.base_pixels(images, spec), fixed), Runner(result)(images))
    return result, contract


def _answers(module: torch.nn.Module, pixels: NDArray[np.float32], fixed: int) -> NDArray[np.float32]:
    filled = np.resize(pixels, (-(-_PROBES // fixed) * fixed, *pixels.shape[1:]))
    parts = [answered(module, filled[start : start + fixed]) for start in range(0, len(filled), fixed)]
    return np.concatenate(parts)[:_PROBES].reshape(_PROBES, -1)


def rebuilt(data: bytes, limits: Limits) -> bytes:
    """Builds a new archive from the safe parts of an old one.

    Args:
        data: The bytes of the `.pt2` file.
        limits: `file_bytes` caps its unpacked size, `archive_entries` its entries.

    Returns:
        An archive that `torch.export.load` reads without unpickling or evaluating anything foreign.

    Raises:
        RefusedError: `MALFORMED` for a broken archive, `TOO_LARGE` past a cap, `MODEL` for what needs a
            pickle, compiled code, or an operator outside torch's `aten`.
    """
    try:
        entries = _unpacked(data, limits)
        program = json.loads(_entry(entries, _MODEL))
        configs = {name: json.loads(_entry(entries, name)) for name in _CONFIGS}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        raise _malformed("the archive is damaged") from error
    except (ValueError, RecursionError, RuntimeError) as error:
        raise _malformed("the archive's description does not parse") from error
    safe = {**_FIXED, _SAMPLES: b"", _MODEL: json.dumps(checked_program(program)).encode()}
    budget = limits.tensor_bytes
    for name, config in configs.items():
        budget -= _config_bytes(config, entries, name.rsplit("/", 1)[0])
        safe[name] = json.dumps({"config": config["config"]}).encode()
    if budget < 0:
        raise RefusedError(Refusal.TOO_LARGE, f"the archive's tensors pass {limits.tensor_bytes} bytes")
    safe |= {name: content for name, content in entries.items() if _PAYLOAD.fullmatch(name)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in safe.items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def _unpacked(data: bytes, limits: Limits) -> dict[str, bytes]:
    """Returns the entries by their name below the root folder."""
    entries: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        # The sizes in the directory are claims, but zipfile reads no more of an entry than its claim.
        if len(infos) > limits.archive_entries or sum(info.file_size for info in infos) > limits.file_bytes:
            raise RefusedError(
                Refusal.TOO_LARGE,
                "the archive unpacks to too much",
                hint="raise Limits.file_bytes or Limits.archive_entries if it is yours",
            )
        # torch stores entries as they are. Others' methods may ask for gigabytes before they have unpacked anything.
        if any(info.compress_type not in _METHODS for info in infos):
            raise _malformed("the archive is packed as torch.export.save does not")
        described = sum(info.file_size for info in infos if info.filename.endswith(".json"))
        if described > _MAX_JSON:
            raise RefusedError(Refusal.TOO_LARGE, f"the archive's descriptions have more than {_MAX_JSON} bytes")
        roots = {info.filename.partition("/")[0] for info in infos}
        if len(roots) != 1:
            raise _malformed("the archive is not laid out as torch.export.save does")
        for info in infos:
            name = info.filename.partition("/")[2]
            if name in entries:
                raise _malformed("the archive names an entry twice")
            _check_name(name)
            if not name.startswith(_DROPPED):
                entries[name] = archive.read(info)
    for name, content in _FIXED.items():
        if not name.startswith(".") and entries.get(name, b"").strip() != content:
            raise _malformed(f"the archive's {name} is not {content.decode()}")
    return entries


def _check_name(name: str) -> None:
    known = name in _FIXED or name in _CONFIGS or name in (_MODEL, _SAMPLES)
    if known or name.startswith(_DROPPED) or _PAYLOAD.fullmatch(name):
        return
    raise RefusedError(
        Refusal.MODEL,
        "the archive holds compiled code, pickled objects or several models",
        hint="save one plain module, without script objects: torch.export.save(program, path)",
    )


def _config_bytes(config: object, entries: dict[str, bytes], folder: str) -> int:
    """Checks a configuration of tensors and returns the bytes they take when read."""
    table = config.get("config") if isinstance(config, dict) else None
    if not isinstance(table, dict):
        raise _malformed("the archive's tensors are described wrongly")
    total = 0
    for payload in table.values():
        if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
            raise RefusedError(
                Refusal.MODEL,
                "a tensor in the archive is a pickle",
                hint="use plain dense tensors and save again",
            )
        place = f"{folder}/{payload.get('path_name')}"
        meta = payload.get("tensor_meta")
        if not _PAYLOAD.fullmatch(place) or place not in entries or not isinstance(meta, dict):
            raise _malformed("the archive's tensors are described wrongly")
        total += _ITEM_BYTES * prod(_plain(meta, "sizes"))
        _plain(meta, "strides")
        _plain({"offset": [meta.get("storage_offset")]}, "offset")
    return total


def _plain(meta: Mapping[str, object], field: str) -> list[int]:
    """Returns sizes, which must be numbers: torch would evaluate an expression."""
    values = meta.get(field)
    numbers = []
    for value in values if isinstance(values, list) else [None]:
        number = value.get("as_int") if isinstance(value, dict) and len(value) == 1 else None
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise _malformed("a tensor's size in the archive is not a number")
        numbers.append(number)
    return numbers


def _entry(entries: dict[str, bytes], name: str) -> bytes:
    if name not in entries:
        raise _malformed(f"the archive lacks {name}")
    return entries[name]


def _malformed(message: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED, message, hint=_EXPORT)
