"""A release: everything that copies of one base and rewriter share, made once.

    release.toml      public: name, rewriter, contract, digests, what calibration found
    payload.bin       secret: the component's plaintext (graph, weights, canary frames), mode 0600
    parity.npz        secret: images and the base's probabilities, for the check of every copy, mode 0600

The folder is the seller's; only sealed copies leave it.
"""

from __future__ import annotations

import io
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.export.arrays import read_arrays
from variegate.export.calibrate import Calibration
from variegate.export.fuse import Template, fuse
from variegate.export.intake.base import Base
from variegate.export.intake.contract import Contract
from variegate.export.parity import CopyJudge, ParityReport, ParitySet, check_template, measure
from variegate.export.rewriters import Rewriter, from_parameters, to_parameters
from variegate.keys.artefact import Payload
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import refuse_shared, write_atomic
from variegate.keys.manifest import DTYPES
from variegate.keys.primitives import sha256

SCHEMA = 1
CANARIES = 8
MAX_NAME = 60
_PARITY_IMAGES = 256
_FULL_CHECKS = 2
_MANIFEST, _PAYLOAD, _PARITY, _CURVE = "release.toml", "payload.bin", "parity.npz", "calibration.json"


@dataclass(frozen=True)
class Release:
    """A checked release.

    Attributes:
        name: For people and for key derivation; unique for a seller.
        template: The shared graph.
        parity: Images with the base's probabilities.
        base_digest: SHA-256 of the canonical base.
        calibration: How the rewriter was chosen, of a release that was just made by calibration; else None.
        report: The result of the last check of parity, for a release that was just made; else None.
    """

    name: str
    template: Template
    parity: ParitySet
    base_digest: bytes
    calibration: Calibration | None = field(default=None, compare=False, repr=False)
    report: ParityReport | None = field(default=None, compare=False, repr=False)

    @property
    def canaries(self) -> ParitySet:
        """The frames of a device's self-test."""
        return self.parity.head(CANARIES)

    @cached_property
    def payload(self) -> bytes:
        """The component's plaintext."""
        t = self.template
        return Payload(t.tensors, self.canaries.images.tobytes(), t.graph, t.constants).to_bytes()

    @cached_property
    def judge(self) -> CopyJudge:
        """Judges single copies."""
        return CopyJudge(self.template)

    def save(self, folder: Path) -> None:
        """Writes the release into a new folder.

        Raises:
            MisuseError: As `check_new`, or when the folder cannot be made.
        """
        check_new(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise MisuseError(f"cannot make {folder}: {(error.strerror or '').lower()}") from error
        packed = io.BytesIO()
        np.savez_compressed(packed, images=self.parity.images, probabilities=self.parity.probabilities)
        # Without release.toml, these are left from a killed run.
        write_atomic(folder / _PAYLOAD, self.payload, overwrite=True)
        write_atomic(folder / _PARITY, packed.getvalue(), overwrite=True)
        if self.calibration is not None:
            curve = {**asdict(self.calibration), "rewriter": to_parameters(self.calibration.rewriter)}
            write_atomic(folder / _CURVE, json.dumps(curve, indent=2).encode(), mode=0o644, overwrite=True)
        # Last, so that a folder with this file is whole.
        write_atomic(folder / _MANIFEST, self._to_toml().encode(), mode=0o644)

    @classmethod
    def load(cls, folder: Path) -> Release:
        """Reads a release folder.

        Raises:
            MisuseError: When it is no release folder, or has unknown keys.
            RefusedError: `MALFORMED`, when its files do not belong together.
        """
        try:
            table = tomllib.loads((folder / _MANIFEST).read_text("utf-8"))
            payload = (folder / _PAYLOAD).read_bytes()
            parity = _read_parity(folder / _PARITY)
        except FileNotFoundError as error:
            raise MisuseError(
                f"{folder} is not a release folder", hint="make one with: variegate export prepare"
            ) from error
        except (OSError, ValueError, KeyError) as error:
            raise RefusedError(Refusal.MALFORMED, f"{folder} cannot be read as a release") from error
        return _from_parts(table, payload, parity)

    def _to_toml(self) -> str:
        c = self.template.contract
        sections: dict[str, Mapping[str, object]] = {
            "": {"schema": SCHEMA, "name": self.name, "dtype": self.template.dtype},
            "rewriter": to_parameters(self.template.rewriter),
            "contract": asdict(c),
            "sha256": {"base": self.base_digest.hex(), "payload": sha256(self.payload).hex()},
        }
        lines: list[str] = []
        for title, values in sections.items():
            lines += [f"\n[{title}]"] if title else []
            # JSON's numbers, strings and lists are TOML's as well; its surrogate escapes are not.
            lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
        return "\n".join(lines) + "\n"


def check_name(name: str) -> str:
    """A release's name of 1 to 60 printable characters.

    Raises:
        MisuseError: For any other.
    """
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise MisuseError(f"a release's name has 1 to {MAX_NAME} printable characters", hint="see --name")
    return name


def check_new(folder: Path) -> None:
    """Checks that a release can be written here, before work is spent on it.

    Raises:
        MisuseError: When the path is a file, lies in one, may not be written, or holds a release already; or when
            others may write the folder that it is in.
    """
    if (folder / _MANIFEST).exists():
        raise MisuseError(f"{folder} holds a release already", hint="choose another --out")
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise MisuseError(f"{nearest} is not a folder", hint="choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise MisuseError(f"{nearest} may not be written", hint="choose another --out")
    refuse_shared(folder.absolute().parent if nearest == folder else nearest)


def make_release(
    name: str,
    base: Base,
    rewriter: Rewriter,
    images: NDArray[Any],
    calibration: Calibration | None = None,
) -> Release:
    """Fuses, and checks the fused graph in full on keys drawn for the check.

    Args:
        name: Of the release, 1 to 60 printable characters.
        base: The base.
        rewriter: The rewriter.
        images: (N, *shape), as devices take them; the first 256 are used, the first 8 become canaries.
        calibration: How the rewriter was chosen.

    Raises:
        MisuseError: When name or images do not fit.
        RefusedError: `PARITY`, when labels differ.
    """
    check_name(name)
    template = fuse(base, rewriter, str(images.dtype))
    if images.shape[1:] != template.shape or len(images) < CANARIES:
        raise MisuseError(f"parity images must be at least {CANARIES} of shape {template.shape}")
    parity = measure(base, images[:_PARITY_IMAGES])
    for i in range(_FULL_CHECKS):
        report = check_template(template, sha256(b"parity", bytes([i])), parity)
        report.require()
    return Release(name, template, parity, base.digest, calibration, report)


def _read_parity(path: Path) -> ParitySet:
    try:
        return ParitySet(*read_arrays(path, ("images", "probabilities")))
    except RefusedError as error:
        raise RefusedError(error.refusal, error.message, hint="prepare the release again") from error


def _from_parts(table: dict[str, Any], payload: bytes, parity: ParitySet) -> Release:
    wanted = {"schema", "name", "dtype", "rewriter", "contract", "sha256"}
    if set(table) != wanted or table["schema"] != SCHEMA:
        odd = ", ".join(sorted(set(table) ^ wanted)) or "schema"
        raise MisuseError(f"release.toml: {odd} is unknown or missing")
    digests = table["sha256"]
    if not isinstance(digests, dict) or digests.get("payload") != sha256(payload).hex():
        raise RefusedError(Refusal.MALFORMED, "payload.bin is not the one that release.toml names")
    try:
        contract = Contract(**{**table["contract"], "class_names": tuple(table["contract"]["class_names"])})
        base_digest = bytes.fromhex(digests["base"])
        rewriter = from_parameters(dict(table["rewriter"]))
    except (TypeError, KeyError, ValueError) as error:
        raise MisuseError("release.toml: rewriter, contract or sha256 has unknown or missing keys") from error
    parts = Payload.from_bytes(payload)
    if not _fits(contract, rewriter, table["dtype"], parts):
        raise RefusedError(
            Refusal.MALFORMED, "release.toml does not describe payload.bin", hint="prepare the release again"
        )
    template = Template(bytes(parts.graph), parts.constants, parts.tensors, contract, rewriter, table["dtype"])
    if parity.images.shape[1:] != template.shape or parity.probabilities.shape[1:] != (contract.classes,):
        raise RefusedError(Refusal.MALFORMED, "parity.npz does not fit release.toml", hint="prepare the release again")
    return Release(check_name(str(table["name"])), template, parity, base_digest)


def _fits(contract: Contract, rewriter: Rewriter, dtype: object, parts: Payload) -> bool:
    """Whether contract and rewriter, edited perhaps, ask for the tensors that the payload's graph lacks."""
    sizes = (contract.channels, contract.height, contract.width, contract.classes)
    if dtype not in DTYPES or any(type(size) is not int or size < 1 for size in sizes):
        return False
    if contract.layout not in ("NCHW", "NHWC") or contract.outputs not in ("logits", "probabilities"):
        return False
    try:
        return rewriter.tensors(contract, str(dtype)) == parts.tensors
    except MisuseError:
        return False
