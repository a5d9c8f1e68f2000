"""Programs that only some tests need: those tests skip without them, except where all programs are required."""

from __future__ import annotations

import os

import pytest

REQUIRED_VARIABLE = "VARIEGATE_REQUIRE_TOOLS"


def skip_without(**there: object) -> None:
    """Skips the module that calls it when something is missing; where the tools are required, fails.

    Args:
        there: By name what was found, or None; an underscore stands for a hyphen.
    """
    lacks = ", ".join(name.replace("_", "-") for name, found in there.items() if found is None)
    if not lacks:
        return
    if os.environ.get(REQUIRED_VARIABLE) == "1":
        pytest.fail(f"{lacks} must be installed", pytrace=False)
    pytest.skip(f"{lacks} not installed", allow_module_level=True)
