"""Enclaves that do not do as they should: started with other code, or patched by root while they run."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import CodeType

from variegate.isolation import launch


def other_code(folder: Path, file: str, *changes: tuple[str, str]) -> dict[str, str]:
    """Our code with changes, for `launch._OURS`: what the next enclaves run, whatever they were measured to be.

    Args:
        folder: Where the copy goes.
        file: Which file to change, as `isolation/child.py`.
        changes: Pairs of what stands there once and what shall stand there.
    """
    ours = {}
    for name, init in launch._OURS.items():
        shutil.copytree(Path(init).parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        ours[name] = str(folder / name / "__init__.py")
    text = (folder / file).read_text()
    for old, new in changes:
        assert text.count(old) == 1, (file, old)
        text = text.replace(old, new)
    (folder / file).write_text(text)
    return ours


def patch(pid: int, code: CodeType, new: bytes) -> int:
    """Writes over the first instructions of a function in a process, as root may.

    Args:
        pid: Of the process.
        code: The same function's code in this process; its first calls have not been made there yet.
        new: Byte code to put behind the first instruction.

    Returns:
        At how many places it was written.
    """
    places = 0
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if not rights.startswith("rw"):
                continue
            memory.seek(start)
            try:
                held = memory.read(end - start)
            except OSError:  # secret pages, and the kernel's own
                continue
            at = held.find(code.co_code)
            while at >= 0:
                memory.seek(start + at + 2)
                memory.write(new)
                places += 1
                at = held.find(code.co_code, at + 1)
    return places
