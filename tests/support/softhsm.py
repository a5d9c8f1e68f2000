"""A real software HSM (SoftHSM2) for tests, with its tokens in a folder of the test's own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.tools import skip_without
from variegate.keys.pkcs11_uri import Pkcs11Uri

PIN = "271828"
SO_PIN = "314159"
_PLACES = ("/usr/lib/softhsm", "/usr/lib64/softhsm", "/usr/lib/x86_64-linux-gnu/softhsm", "/usr/local/lib/softhsm")
_INSTALLED: list[SoftHsm] = []
_UTIL = shutil.which("softhsm2-util")
MODULE = next((path for place in _PLACES if (path := Path(place) / "libsofthsm2.so").is_file()), None)


def need() -> None:
    """Skips the module that calls it when there is no SoftHSM2; where the tools are required, fails."""
    skip_without(softhsm2_util=_UTIL, libsofthsm2=MODULE, python_pkcs11=importlib.util.find_spec("pkcs11"))


@dataclass(frozen=True)
class SoftHsm:
    """Tokens in a folder. The module reads its configuration when a process loads it, so one folder serves a process.

    Attributes:
        folder: Configuration and tokens.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, *, mechanisms: str = "ALL") -> SoftHsm:
        """An HSM without tokens.

        Args:
            folder: An empty one.
            mechanisms: What it can do, as SoftHSM's `slots.mechanisms`.
        """
        (folder / "tokens").mkdir()
        lines = (
            f"directories.tokendir = {folder / 'tokens'}",
            "objectstore.backend = file",
            "log.level = ERROR",
            f"slots.mechanisms = {mechanisms}",
        )
        (folder / "softhsm2.conf").write_text("\n".join(lines) + "\n")
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {"SOFTHSM2_CONF": str(self.folder / "softhsm2.conf")}

    def new_token(self, label: str) -> None:
        """Initialises a token under `PIN`."""
        assert _UTIL is not None
        command = [_UTIL, "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN]
        subprocess.run(command, env={**os.environ, **self.environment}, check=True, capture_output=True)

    def remove(self) -> None:
        """Takes all tokens away, as when the device is unplugged."""
        (self.folder / "tokens").rename(self.folder / "unplugged")


def uri(label: str, *, token: str = "seller", more: str = "", query: str = "") -> str:
    """The URI of a seller's keys."""
    return f"pkcs11:token={token};object={label}{more}?module-path={MODULE}{query}"


def parsed(label: str, **how: str) -> Pkcs11Uri:
    """What `uri` says."""
    return Pkcs11Uri.parse(uri(label, **how))


@contextmanager
def installed(folders: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    """An HSM with tokens "seller", "other" and two called "twin", for this process and its children.

    The same one each time, since the module keeps to the configuration that this process first loaded it with.
    """
    if not _INSTALLED:
        made = SoftHsm.create(folders.mktemp("hsm"))
        for label in ("seller", "other", "twin", "twin"):
            made.new_token(label)
        _INSTALLED.append(made)
    made = _INSTALLED[0]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        yield made
