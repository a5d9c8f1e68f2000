"""`pytest --quick`: the tests that need neither data nor a second. `make check` runs these.

`long_tests.txt` names the others. `python tests/conftest.py REPORT` writes it from a full run, whose REPORT is what
`pytest --junitxml REPORT` wrote. A test that is not in it counts as quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

LONG = Path(__file__).with_name("long_tests.txt")
_SECONDS = 0.3
"""Half a minute of `make check` is spent on tests between this and a second; they are left out, too."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption("--quick", action="store_true", help="only tests that need neither data nor a second")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is not quick."""
    if not config.getoption("--quick"):
        return
    long = set(LONG.read_text("utf-8").split())
    left_out = [item for item in items if _name(item.nodeid) in long or item.get_closest_marker("data")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _name(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def main() -> None:
    """Writes the list from a report."""
    names = set()
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        place, name = case.attrib["classname"].split("."), case.attrib["name"].partition("[")[0]
        # A class within a module begins with a capital.
        parts = [part for part in place if part[0].isupper()]
        module = "/".join(part for part in place if not part[0].isupper())
        if float(case.attrib["time"]) > _SECONDS:
            names.add("::".join([f"{module}.py", *parts, name]))
    LONG.write_text("\n".join(sorted(names)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
