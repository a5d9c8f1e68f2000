"""The source that a result names: what makes a figure old, and what does not."""

from __future__ import annotations

import ast

from benchmarks.status import standings
from testbed.source import changed, digest, source_of

PLAIN = 'import os\n\n\ndef area(side: int) -> int:\n    """Of a square."""\n    return side * side  # as ever\n'


def test_words_and_imports_do_not_make_a_figure_old_and_deeds_do() -> None:
    assert digest(ast.parse(PLAIN.replace("Of a square", "Its area").replace("import os", "import sys"))) == digest(
        ast.parse(PLAIN)
    )
    assert digest(ast.parse(PLAIN.replace("side * side", "side + side"))) != digest(ast.parse(PLAIN))


def test_a_moved_file_is_the_same_and_a_new_one_is_not() -> None:
    assert changed({"a/x.py": "1", "a/y.py": "2"}, {"b/x.py": "1", "a/y.py": "2"}) == []
    assert changed({"a/x.py": "1"}, {"a/x.py": "2", "a/z.py": "3"}) == ["a/x.py", "a/z.py"]
    assert changed({"a/x.py": "1", "a/y.py": "2"}, {"a/x.py": "1"}) == ["a/y.py"]


def test_a_command_needs_what_it_imports_and_what_that_imports() -> None:
    files = source_of("benchmarks.runtime")
    assert {"benchmarks/runtime.py", "export/fuse.py", "keys/errors.py"} <= set(files)
    assert "attack/driver.py" not in files
    assert {"isolation/host.py", "isolation/keeper.py"} <= set(source_of("benchmarks.serve"))


def test_every_committed_result_names_its_source() -> None:
    assert len(standings()) >= 24
    assert all(source_of(one.module) for one in standings() if one.name != "world")
