"""Input and output of the commands: results on stdout, everything else on stderr, secrets never shown."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from variegate.keys import keyfile
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import refuse_open_to_others
from variegate.keys.seller import SellerKeys
from variegate.keys.shown import printable
from variegate.keys.uri import file_path, is_hsm, open_seller, scheme_of

PASSPHRASE_FILE_VARIABLE = "VARIEGATE_PASSPHRASE_FILE"  # noqa: S105 - a variable's name
PIN_FILE_VARIABLE = "VARIEGATE_PIN_FILE"
_MAX_PASSPHRASE_BYTES = 4096
_TERMINAL_PERIOD_S = 0.1
_LOG_PERIOD_S = 5.0


def note(text: str) -> None:
    """Prints a message on stderr; quoted text cannot control the terminal."""
    print(printable(text, lines=True), file=sys.stderr, flush=True)


def emit(data: object, as_json: bool, text: Callable[[], str]) -> None:
    """Prints a result on stdout.

    Args:
        data: The result in JSON's types.
        as_json: Whether to print `data` as JSON.
        text: Makes the text for people; quoted text cannot control the terminal.
    """
    print(json.dumps(data, indent=2, sort_keys=True) if as_json else printable(text(), lines=True))


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Aligned columns, two spaces apart; numbers to the right, texts to the left, each on its line.

    Args:
        rows: Cells, as many in each row.
        header: Names of the columns, if any.

    Returns:
        Lines without a line end at the last.
    """
    given = [list(header), *rows] if header else list(rows)
    every = [[cell if isinstance(cell, int | float) else printable(str(cell)) for cell in row] for row in given]
    if not every:
        return ""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*every, strict=True)]
    lines = []
    for row in every:
        cells = [
            str(cell).rjust(width) if isinstance(cell, int | float) else str(cell).ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class Progress:
    """One line on stderr for long work: redrawn on a terminal, otherwise a new line every five seconds.

    Args:
        label: The name of the work.
        total: Number of steps, or None when unknown.
    """

    def __init__(self, label: str, total: int | None = None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._terminal = sys.stderr.isatty()
        self._period = _TERMINAL_PERIOD_S if self._terminal else _LOG_PERIOD_S
        self._shown = time.monotonic() - (self._period if self._terminal else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def advance(self, steps: int = 1) -> None:
        """Counts steps done."""
        self._done += steps
        now = time.monotonic()
        if now - self._shown < self._period:
            return
        self._shown = now
        line = f"{self._label}: {self._done}" + ("" if self._total is None else f" of {self._total}")
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            note(line)


def read_file(path: Path) -> bytes:
    """A file that the person named.

    Raises:
        MisuseError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise MisuseError(f"cannot read {path}: {(error.strerror or type(error).__name__).lower()}") from error


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`, as `args.json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_passphrase_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--passphrase-file`, as `args.passphrase_file`."""
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="PATH",
        help=f"file with the passphrase (default: ${PASSPHRASE_FILE_VARIABLE}, else asked on the terminal)",
    )


def passphrase_reader(path: Path | None, *, create: bool = False) -> Callable[[], str]:
    """A function that gets the passphrase when it is needed, and asks at most once.

    Args:
        path: The value of `--passphrase-file`; else the environment names a file, else a terminal is asked.
        create: Whether a new key is made: then a terminal is asked twice.
    """
    known: list[str] = []

    def read() -> str:
        if not known:
            known.append(_passphrase(path, create=create))
        return known[0]

    return read


class Secrets:
    """The passphrase of key files and the PIN of a token, each asked for at most once, and only when needed.

    Args:
        passphrase_file: The value of `--passphrase-file`.
        create: Whether a new key file is made: then a terminal is asked for its passphrase twice.
    """

    def __init__(self, passphrase_file: Path | None, *, create: bool = False) -> None:
        self._passphrase = passphrase_reader(passphrase_file, create=create)
        self._pin = cache(_pin)

    def of(self, uri: str) -> Callable[[], str]:
        """A function that gets the secret for the keys of a URI: a PIN for an HSM, else a passphrase."""
        return self._pin if is_hsm(uri) else self._passphrase

    def seller(self, uri: str) -> SellerKeys:
        """Opens a seller's keys.

        Raises:
            VariegateError: As `uri.open_seller` and `check_key_file`.
        """
        if scheme_of(uri) == "file":
            check_key_file(file_path(uri))
        return open_seller(uri, self.of(uri))


def check_key_file(path: Path) -> Path:
    """Tells a key file from any other by its first bytes, before a passphrase is asked for.

    Raises:
        MisuseError: There is no such file.
        RefusedError: `KEY`, when it is another kind of file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(keyfile.MAGIC))
    except OSError as error:
        raise MisuseError(f"cannot read {path}: {(error.strerror or type(error).__name__).lower()}") from error
    if start != keyfile.MAGIC:
        raise RefusedError(Refusal.KEY, f"{path} is not a key file", hint="variegate keys show PATH says what it is")
    return path


def _passphrase(path: Path | None, *, create: bool) -> str:
    named = os.environ.get(PASSPHRASE_FILE_VARIABLE)
    if path is None and named:
        path = Path(named)
    if path is not None:
        return _from_file(path)
    if not sys.stdin.isatty():
        hint = f"give --passphrase-file, or set {PASSPHRASE_FILE_VARIABLE}"
        raise MisuseError("no passphrase, and no terminal to ask for one", hint=hint)
    first = getpass.getpass("passphrase: ")
    if create and getpass.getpass("again: ") != first:
        raise MisuseError("the two passphrases differ")
    return first


def _pin() -> str:
    named = os.environ.get(PIN_FILE_VARIABLE)
    if named:
        return _from_file(Path(named), "PIN")
    if not sys.stdin.isatty():
        hint = f"name a file with the PIN: pin-source=file:/path in the URI, or {PIN_FILE_VARIABLE}"
        raise MisuseError("no PIN, and no terminal to ask for one", hint=hint)
    return getpass.getpass("PIN: ")


def _from_file(path: Path, what: str = "passphrase") -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            # A pipe (`<(pass show seller)`) belongs to this process; only files can lie open to others.
            if stat.S_ISREG(status.st_mode):
                refuse_open_to_others(path, status)
            data = file.read(_MAX_PASSPHRASE_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MisuseError(f"cannot read the {what} file {path}: {reason}") from error
    if len(data) > _MAX_PASSPHRASE_BYTES:
        raise MisuseError(f"{what} file {path} is larger than {_MAX_PASSPHRASE_BYTES} bytes")
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    # Raised outside of a handler: the error in decoding quotes the secret, and would be this one's context.
    raise MisuseError(f"{what} file {path} is not UTF-8 text")
