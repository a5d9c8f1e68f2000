"""Entry point of `variegate`: chooses the group, imports only that, and turns errors into words and a status.

Exit status: 0 done; 1 refused; 2 wrong usage; 130 interrupted; 141 the reader of stdout went away.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType

from variegate.cli import completion
from variegate.keys.errors import MisuseError, VariegateError
from variegate.keys.shown import printable

GROUPS = {
    "keys": ("make, show, rotate and revoke keys", "variegate.cli.keys"),
    "export": ("make a release from a base model, and seal copies for buyers", "variegate.cli.export"),
    "broker": ("release keys to devices that prove what they run", "variegate.cli.broker"),
    "device": ("provision, flash and query a simulated device", "variegate.cli.device"),
    "attack": ("run campaigns of attacks on fleets, and report them", "variegate.cli.attack"),
    "trace": ("find the copy on which adversarial samples were made", "variegate.cli.trace"),
    "demo": ("show the whole story in a minute", "variegate.cli.demo"),
    "completion": ("print what makes a shell complete commands and options", "variegate.cli.completion"),
}
"""Name -> one-line help, and the module whose `add_commands(parser)` fills the group."""

_EXTRAS = {
    "onnx": "seller",
    "onnxscript": "seller",
    "onnxsim": "seller",
    "safetensors": "seller",
    "torch": "seller",
    "argcomplete": "completion",
    "PIL": "demo",
    "distributed": "redteam",
    "duckdb": "redteam",
    "jsonschema": "redteam",
    "matplotlib": "redteam",
    "pyarrow": "redteam",
    "threadpoolctl": "redteam",
    "httptools": "serve",
    "uvicorn": "serve",
}
_REFUSED, _USAGE, _INTERRUPTED, _BROKEN_PIPE = 1, 2, 130, 141
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_TRACEBACK_VARIABLE = "VARIEGATE_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name, or None for the process's own.

    Returns:
        The exit status.
    """
    try:
        try:
            status = _run(sys.argv[1:] if argv is None else list(argv))
        except SystemExit as stop:  # argparse: --help, --version, usage
            status = stop.code if isinstance(stop.code, int) else _USAGE
        if sys.__stdout__ is not None:  # it is None when the command was started without one
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nvariegate: interrupted; run again to continue", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        return _BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last line before the person
        return _report(error)
    return status


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="variegate",
        description="Ships every buyer of a neural classifier a different sealed copy.",
        epilog="Help for a group: variegate keys --help",
    )
    parser.add_argument("--version", action="version", version=f"variegate {version('variegate')}")
    groups = parser.add_subparsers(metavar="GROUP")
    completes = completion.ASKED in os.environ
    if completes:
        argv = os.environ.get("COMP_LINE", "").split()[1:]
    chosen = next((argument for argument in argv if not argument.startswith("-")), None)
    group = parser
    for name, (line, module) in GROUPS.items():
        sub = groups.add_parser(name, help=line, description=line, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            group = sub
            _load(module, name).add_commands(sub)
    if completes:
        completion.answer(parser)
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        group.print_help(sys.stderr)
        return _USAGE
    status = args.run(args)
    return int(status)


def _load(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise MisuseError(f"the group '{name}' is not part of this installation") from None
        raise


def _report(error: Exception) -> int:
    """Prints an error in the command's format, and returns the exit status."""
    hint: str | None = None
    match error:
        case VariegateError():
            status = _USAGE if isinstance(error, MisuseError) else _REFUSED
            message, hint = error.message, error.hint
        case ModuleNotFoundError() if (package := (error.name or "").partition(".")[0]) in _EXTRAS:
            status, message = _USAGE, f"this command needs the package {package}"
            hint = f'pip install "variegate[{_EXTRAS[package]}]"'
        case OSError(filename=str(where), strerror=str(reason)):
            status, message = _REFUSED, f"{reason.lower()}: {where}"
        case OSError(errno=int(number), strerror=str(reason)) if number in _CANNOT_WRITE:
            # Of no file: every file that is written has its own error with a name.
            status, message, hint = _REFUSED, f"cannot write the result: {reason.lower()}", "see where stdout goes"
            _give_up_stdout()
        case _:
            # The error's own text may quote a secret; only its type is shown.
            status, message = _REFUSED, f"internal error ({type(error).__name__})"
            hint = f"this is a fault in Variegate; set {_TRACEBACK_VARIABLE}=1 to see where"
    if os.environ.get(_TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    print(f"variegate: {printable(message)}", file=sys.stderr)
    if hint is not None:
        print(f"hint: {printable(hint)}", file=sys.stderr)
    return status


def _give_up_stdout() -> None:
    """Keeps the interpreter from complaining: it flushes stdout once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
