"""The demo's folder: decides which files may be overwritten, and writes them in a safe order."""

from __future__ import annotations

import json
from pathlib import Path

from variegate.demo import tell
from variegate.demo.cars import BUYERS
from variegate.demo.page import page
from variegate.demo.pictures import pictures
from variegate.demo.story import Story
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.files import PUBLIC, write_atomic

SUMMARY = "demo.json"
"""Written last, so that a folder with this file is whole; it also marks the folder as the demo's own."""


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuses a folder that holds anything but an earlier demo.

    Raises:
        MisuseError: It does, and `force` is not set; or it is no folder.
    """
    try:
        occupied = any(folder.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise MisuseError(f"{folder} is not a folder") from error
    if occupied and not force and not (folder / SUMMARY).is_file():
        hint = "choose another --out, or overwrite with --force"
        raise MisuseError(f"{folder} holds files that are not an earlier demo's", hint=hint)


def write(folder: Path, story: Story, made_with: str) -> list[Path]:
    """Writes pictures, page and summary.

    Args:
        folder: Checked by `check_folder`; made when it is not there.
        story: The finished story.
        made_with: The command line, for the page.

    Returns:
        The page, the overview picture when there is one, and the summary.

    Raises:
        MisuseError: The folder cannot be written.
        DeviceError: Storage failed.
    """
    files = pictures(story.attacked)
    headline = tell.headline(story.attacked, story.verdicts, BUYERS["A"])
    files["index.html"] = page(story.chapters, story.attacked, story.curves, headline, made_with).encode()
    summary = json.dumps(story.summary(), indent=2).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A picture of an earlier run with more signs would be taken for one of this run.
        for pattern in ("sign-*.png", "reads-*.png"):
            for old in folder.glob(pattern):
                old.unlink()
        (folder / SUMMARY).unlink(missing_ok=True)
    except OSError as error:
        raise DeviceError(f"cannot write {folder}: {(error.strerror or '').lower()}") from error
    for name, data in [*files.items(), (SUMMARY, summary)]:
        write_atomic(folder / name, data, mode=PUBLIC, overwrite=True)
    return [folder / name for name in ("index.html", "cars.png", SUMMARY) if name in files or name == SUMMARY]
