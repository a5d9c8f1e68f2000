"""The signed manifest of a report: SHA-256 of every file in it, and who vouches for them.

    evidence/manifest.json   {"format", "files": {path: {"sha256", "size"}}, "signed"}
    evidence/manifest.cose   a statement of `keys.signing` (Ed25519 and ML-DSA-65) over SHA-256 of manifest.json

Signed are all files of the report's folder but these two; the second is missing where nobody signed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from variegate.keys import signing
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.files import read_capped
from variegate.keys.primitives import sha256
from variegate.keys.signing import SellerRoot, Signer

MANIFEST, SIGNATURE = "evidence/manifest.json", "evidence/manifest.cose"
CONTEXT = b"variegate/1/attack-evidence"
FORMAT = "variegate/1/attack-evidence"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MAX_FILES = 10_000
_CHUNK = 1 << 20
_DIGEST_LETTERS = 64


@dataclass(frozen=True)
class Verified:
    """A report whose files are those of its manifest.

    Attributes:
        files: How many.
        digest: SHA-256 of the manifest, hexadecimal.
        signed: Whether a signature by the root was asked for, and held.
        fingerprint: Of the root, hexadecimal; None where none was given.
    """

    files: int
    digest: str
    signed: bool
    fingerprint: str | None


def files(contents: Mapping[str, bytes], signer: Signer | None) -> dict[str, bytes]:
    """The manifest of a report, and its signature.

    Args:
        contents: Files by path, with slashes.
        signer: Whoever vouches; None for nobody.
    """
    listed = {name: {"sha256": sha256(data).hex(), "size": len(data)} for name, data in sorted(contents.items())}
    signed = signer is not None
    document = {"format": FORMAT, "files": listed, "signed": signed}
    manifest = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
    out = {MANIFEST: manifest}
    if signer is not None:
        out[SIGNATURE] = signing.sign_batch(CONTEXT, [sha256(manifest)], signer)[0]
    return out


def verify_evidence(folder: Path, root: SellerRoot | None) -> Verified:
    """Verifies a report's folder: the signature first, then every file.

    Args:
        folder: Of the report, the one that holds `evidence/`.
        root: Whose signature must be there; None compares files with an unsigned or unchecked manifest, which shows
            accidents and no forgery.

    Raises:
        MisuseError: There is no such folder, or no manifest in it.
        RefusedError: `SIGNATURE`: it is not signed by the root; `MALFORMED`: the manifest is damaged; `EVIDENCE`: a
            file is missing, changed, or not in the manifest, or there is none; `TOO_LARGE`.
        DeviceError: Storage failed.
    """
    manifest = read_capped(folder / MANIFEST, limit=MAX_MANIFEST_BYTES)
    if root is not None:
        if not (folder / SIGNATURE).is_file():
            raise RefusedError(Refusal.SIGNATURE, "evidence is not signed")
        statement = read_capped(folder / SIGNATURE, limit=signing.MAX_STATEMENT_BYTES)
        if signing.verify(CONTEXT, statement, root) != sha256(manifest):
            raise RefusedError(Refusal.SIGNATURE, "evidence is signed, and its manifest was changed")
    stated = _parsed(manifest)
    if not stated:
        raise RefusedError(Refusal.EVIDENCE, "evidence lists no files: nothing is shown by it")
    files = set(_walk(folder)) - {MANIFEST, SIGNATURE}
    for name in sorted(files ^ stated.keys()):
        what = "is missing" if name in stated else "is not in the manifest"
        raise RefusedError(Refusal.EVIDENCE, f"{name} {what}")
    for name, (digest, size) in sorted(stated.items()):
        if digest_of(folder / name) != (digest, size):
            raise RefusedError(Refusal.EVIDENCE, f"{name} was changed")
    return Verified(len(stated), sha256(manifest).hex(), root is not None, root.fingerprint.hex() if root else None)


def _parsed(manifest: bytes) -> dict[str, tuple[str, int]]:
    try:
        document = json.loads(manifest)
    except (ValueError, RecursionError) as error:
        raise _malformed() from error
    listed = document.get("files") if isinstance(document, dict) and document.get("format") == FORMAT else None
    if not isinstance(listed, dict) or len(listed) > MAX_FILES:
        raise _malformed()
    out = {}
    for name, entry in listed.items():
        match entry:
            case {"sha256": str(digest), "size": int(size)} if len(digest) == _DIGEST_LETTERS:
                out[str(name)] = (digest, size)
            case _:
                raise _malformed()
    return out


def _walk(folder: Path) -> Iterator[str]:
    """Regular files below a folder, with slashes; links and whatever else is there are refused."""
    todo, seen = [folder], 0
    while todo:
        try:
            entries = sorted(os.scandir(todo.pop()), key=lambda entry: entry.name)
        except OSError as error:
            raise DeviceError(f"cannot read {folder}: {(error.strerror or '').lower()}") from error
        for entry in entries:
            seen += 1
            if seen > MAX_FILES:
                raise RefusedError(Refusal.TOO_LARGE, f"{folder} holds more than {MAX_FILES} files")
            if entry.is_dir(follow_symlinks=False):
                todo.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path).relative_to(folder).as_posix()
            else:
                raise RefusedError(Refusal.EVIDENCE, f"{entry.path} is not a regular file")


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 of a file in hexadecimal, and its size in bytes.

    Raises:
        DeviceError: It cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {(error.strerror or type(error).__name__).lower()}") from error
    return digest.hexdigest(), size


def check_folder(folder: Path) -> None:
    """Refuses a folder without evidence.

    Raises:
        MisuseError: There is none.
    """
    if not (folder / MANIFEST).is_file():
        raise MisuseError(f"{folder} holds no evidence", hint="name the folder that a report was written to")


def _malformed() -> RefusedError:
    return RefusedError(Refusal.MALFORMED, "evidence has a damaged manifest")
