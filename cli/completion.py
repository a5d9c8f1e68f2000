"""`variegate completion`: what a shell runs so that it completes commands and options. Needs the completion extra."""

from __future__ import annotations

import argparse

ASKED = "_ARGCOMPLETE"
"""Set by the shell when it asks for completions (argcomplete's protocol)."""


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Fills the command's own parser: it has no commands below it."""
    parser.epilog = (
        'examples:\n  eval "$(variegate completion bash)"      # in ~/.bashrc\n'
        '  eval "$(variegate completion zsh)"       # in ~/.zshrc, behind compinit\n'
        "  variegate completion fish | source      # in ~/.config/fish/config.fish"
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that runs it")
    parser.set_defaults(run=_script)


def _script(args: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode  # noqa: PLC0415  an extra

    print(shellcode(["variegate"], shell=args.shell))
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Answers the shell that asked, and ends the process."""
    from argcomplete import autocomplete  # noqa: PLC0415

    autocomplete(parser)
