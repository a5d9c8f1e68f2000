"""A release: everything that copies of one base and rewriter share, made once.

    release.toml      public: name, rewriter, contract, digests, what calibration found
    payload.bin       secret: the component's plaintext (graph without keyed tensors, canary frames), mode 0600
    parity.npz        secret: images and the base's probabilities, for the check of every copy, mode 0600

The folder is the seller's; only sealed copies leave it.
"""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.export.arrays import read_arrays
from variegate.export.base import Base
from variegate.export.calibrate import Calibration
from variegate.export.contract import Contract
from variegate.export.fuse import Template, fuse
from variegate.export.parity import CopyJudge, ParityReport, ParitySet, check_template, softmax
from variegate.export.rewriters import Rewriter, from_parameters, to_parameters
from variegate.keys.artefact import Payload
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import write_atomic
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
    """

    name: str
    template: Template
    parity: ParitySet
    base_digest: bytes

    @property
    def canaries(self) -> ParitySet:
        """The frames of a device's self-test."""
        return self.parity.head(CANARIES)

    @cached_property
    def payload(self) -> bytes:
        """The component's plaintext."""
        return Payload(self.template.tensors, self.canaries.images.tobytes(), self.template.graph).to_bytes()

    @cached_property
    def judge(self) -> CopyJudge:
        """Judges single copies."""
        return CopyJudge(self.template)

    def save(self, folder: Path, calibration: Calibration | None = None) -> None:
        """Writes the release into a new folder.

        Raises:
            MisuseError: When the folder holds a release already.
        """
        if (folder / _MANIFEST).exists():
            raise MisuseError(f"{folder} holds a release already", hint="choose another --out")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        packed = io.BytesIO()
        np.savez_compressed(packed, images=self.parity.images, probabilities=self.parity.probabilities)
        write_atomic(folder / _PAYLOAD, self.payload)
        write_atomic(folder / _PARITY, packed.getvalue())
        if calibration is not None:
            curve = {**asdict(calibration), "rewriter": to_parameters(calibration.rewriter)}
            write_atomic(folder / _CURVE, json.dumps(curve, indent=2).encode(), mode=0o644)
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
            parity = ParitySet(*read_arrays(folder / _PARITY, ("images", "probabilities")))
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
            # JSON's numbers, strings and lists are TOML's as well.
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        return "\n".join(lines) + "\n"


def make_release(
    name: str,
    base: Base,
    rewriter: Rewriter,
    images: NDArray[Any],
) -> tuple[Release, ParityReport]:
    """Fuses, and checks the fused graph in full on keys drawn for the check.

    Args:
        name: Of the release, 1 to 60 printable characters.
        base: The base.
        rewriter: The rewriter.
        images: (N, *shape), as devices take them; the first 256 are used, the first 8 become canaries.

    Returns:
        The release, and what the last check found.

    Raises:
        MisuseError: When name or images do not fit.
        RefusedError: `PARITY`, when labels differ.
    """
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise MisuseError(f"a release's name has 1 to {MAX_NAME} printable characters")
    template = fuse(base, rewriter, str(images.dtype))
    if images.shape[1:] != template.shape or len(images) < CANARIES:
        raise MisuseError(f"parity images must be at least {CANARIES} of shape {template.shape}")
    parity = measure(base, images[:_PARITY_IMAGES])
    for i in range(_FULL_CHECKS):
        report = check_template(template, sha256(b"parity", bytes([i])), parity)
        report.require()
    return Release(name, template, parity, base.digest), report


def measure(base: Base, images: NDArray[Any]) -> ParitySet:
    """Lets the base answer images once."""
    floats = images / np.float32(255) if images.dtype == np.uint8 else images
    scores = base.scores(np.ascontiguousarray(floats, np.float32))
    probabilities = scores if base.contract.outputs == "probabilities" else softmax(scores)
    return ParitySet(images, probabilities)


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
    except (TypeError, KeyError, ValueError) as error:
        raise MisuseError("release.toml: contract or sha256 has unknown or missing keys") from error
    parts = Payload.from_bytes(payload)
    template = Template(bytes(parts.graph), parts.tensors, contract, from_parameters(table["rewriter"]), table["dtype"])
    return Release(str(table["name"]), template, parity, base_digest)
