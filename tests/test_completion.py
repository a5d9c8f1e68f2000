"""Shells complete `variegate`: real bash, zsh and fish, asked as a person's keys would ask them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.tools import skip_without
from variegate.cli import main as cli

_DRIVERS = {
    # What the shell's own machinery calls when a person presses Tab.
    "bash": """
        eval "$(variegate completion bash)"
        COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        [[ $1 == *' ' ]] && COMP_WORDS+=("") && COMP_CWORD=$((COMP_CWORD + 1))
        $(complete -p variegate | sed 's/.*-F \\([^ ]*\\).*/\\1/') variegate "${COMP_WORDS[COMP_CWORD]}" x
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        autoload -Uz compinit && compinit -u -d $HOME/.zcompdump
        eval "$(variegate completion zsh)"
        _describe() { print -l -- ${(P)2} }
        compadd() { print -l -- "$@" }
        words=(${=1}); [[ $1 == *' ' ]] && words+=(""); CURRENT=$#words; BUFFER=$1; CURSOR=$#1; service=variegate
        ${_comps[variegate]} 2>/dev/null
    """,
    "fish": """
        variegate completion fish | source
        complete -C "$argv[1]"
    """,
}


def completed(shell: str, line: str, home: Path) -> set[str]:
    skip_without(**{shell: shutil.which(shell)})
    bin_ = str(Path(sys.executable).parent)
    environment = {"PATH": f"{bin_}:/usr/bin:/bin", "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8"}
    given = [shell, "-c", _DRIVERS[shell], *([] if shell == "fish" else [shell]), line]
    done = subprocess.run(given, capture_output=True, text=True, env=environment, check=False, timeout=60)
    words = done.stdout.replace("\t", " ").replace(":", " ").split()
    assert words, done.stderr
    return set(words)


@pytest.mark.parametrize("shell", _DRIVERS)
def test_shells_complete_groups_commands_and_options(shell: str, tmp_path: Path) -> None:
    assert "export" in completed(shell, "variegate exp", tmp_path)
    assert "prepare" in completed(shell, "variegate export pr", tmp_path)
    assert {"--validation", "--value-range"} <= completed(shell, "variegate export prepare --va", tmp_path)


def test_without_the_library_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert cli.main(["completion", "bash"]) == 2
    assert 'pip install "variegate[completion]"' in capsys.readouterr().err


def test_the_command_itself_needs_no_library() -> None:
    code = "import sys; sys.modules['argcomplete'] = None; from variegate.cli.main import main; main(['--version'])"
    environment = {name: value for name, value in os.environ.items() if name != "_ARGCOMPLETE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.startswith("variegate ")
    assert shutil.which("variegate", path=str(Path(sys.executable).parent))
