"""Weights from safetensors, and modules by name, for the command line. Pickles are never opened."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from variegate.export.intake.guard import CONVERT, Limits, read_file, refuse_pickles
from variegate.keys.errors import MisuseError, Refusal, RefusedError

# The first bytes of a file of torch.save, old or new, and of any pickle of protocol 2 and above.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_SHOWN = 5
_COUNTER = "num_batches_tracked"
"""Batch normalisation counts batches in it while it is trained; older files, and those of other tools, lack it."""
_LIMITS = Limits()


def load_weights(module: torch.nn.Module, path: Path, limits: Limits = _LIMITS) -> None:
    """Loads weights into a module, all of them or none.

    Args:
        module: Receives the weights; unchanged when anything is refused.
        path: A `.safetensors` file.
        limits: `file_bytes` caps the file.

    Raises:
        RefusedError: `MALFORMED` for a pickle or a damaged file, `TOO_LARGE` past the cap, `MODEL` when
            names, shapes or dtypes do not match the module's.
    """
    refuse_pickles(path)
    if path.suffix.lower() != ".safetensors":
        raise RefusedError(Refusal.MALFORMED, f"{path} is not a .safetensors file", hint=CONVERT)
    data = read_file(path, limits)
    if data.startswith(_PICKLE_STARTS):
        raise RefusedError(Refusal.MALFORMED, f"{path} holds a pickle, not safetensors", hint=CONVERT)
    try:
        given = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(Refusal.MALFORMED, f"{path} is not a valid safetensors file") from error
    wanted = module.state_dict()
    _refuse_names("lacks", {name for name in wanted.keys() - given.keys() if not name.endswith(_COUNTER)}, path)
    _refuse_names("has unexpected", given.keys() - wanted.keys(), path)
    _refuse_names("has the wrong shape for", {n for n, t in given.items() if t.shape != wanted[n].shape}, path)
    _refuse_names("has the wrong type for", {n for n, t in given.items() if t.dtype != wanted[n].dtype}, path)
    module.load_state_dict(wanted | given, strict=True)


def module_from_spec(spec: str) -> torch.nn.Module:
    """Builds a module from "package.module:factory".

    This imports and runs the seller's own code: never pass on a name that came from outside.

    Args:
        spec: The place of a function or class without required arguments that returns a `torch.nn.Module`.

    Raises:
        MisuseError: The name is malformed, is not there, or gives no module.
    """
    if _SPEC.fullmatch(spec) is None:
        raise MisuseError("the module's name is malformed", hint='write it as "package.module:factory"')
    place, name = spec.split(":")
    try:
        factory = getattr(importlib.import_module(place), name)
    except ImportError as error:
        raise MisuseError(f"cannot import {place}: {error}", hint="is it installed, or on PYTHONPATH?") from error
    except AttributeError as error:
        raise MisuseError(f"{place} has no {name}", hint="name a function or class of the module") from error
    except Exception as error:
        raise MisuseError(f"importing {place} failed ({type(error).__name__}: {error})") from error
    if isinstance(factory, torch.nn.Module):
        return factory
    try:
        module = factory()
    except Exception as error:
        raise MisuseError(
            f"{spec} cannot be called ({type(error).__name__}: {error})",
            hint="it is called without arguments",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise MisuseError(f"{spec} gives a {type(module).__name__}", hint="return a torch.nn.Module")
    return module


def _refuse_names(what: str, names: set[str], path: Path) -> None:
    if names:
        shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise RefusedError(
            Refusal.MODEL,
            f"{path} {what} {len(names)} tensors: {shown}",
            hint="are these the weights of this module?",
        )
