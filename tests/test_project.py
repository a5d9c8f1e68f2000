"""What holds the project together: packages, who may import whom, and figures that are what they claim."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import tables
from testbed.result import FOLDERS, load

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "keys": set(),
    "runtime": {"keys"},
    "export": {"keys"},
    "attest": {"keys"},
    "isolation": {"attest", "runtime", "keys"},
    "device_sim": {"isolation", "attest", "runtime", "keys"},
    "serve": {"device_sim", "isolation", "attest", "runtime", "keys"},
    "attack": {"device_sim", "isolation", "runtime", "export", "keys"},
    "forensics": {"export", "keys"},
    "demo": {"forensics", "attack", "device_sim", "runtime", "export", "keys"},
    "cli": {"attack", "forensics", "serve", "demo", "device_sim", "isolation", "attest", "runtime", "export", "keys"},
}
BARE = {"numpy", "onnxruntime", "cryptography", "cbor2"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    out: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            out.add(node.module or "")
            if node.module == "variegate":
                out |= {f"variegate.{alias.name}" for alias in node.names}
    return out


def test_the_wheel_lists_every_package() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        "variegate." + ".".join(path.parent.relative_to(ROOT).parts)
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == found
    assert {p.name for p in (ROOT / ".typing/variegate").iterdir()} == set(MAY_IMPORT)
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_they_may(package: str) -> None:
    for path in sources(package):
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("variegate.")}
        assert ours - {package} <= MAY_IMPORT[package], path


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        ("testbed", {"tests", "benchmarks", "assurance"}),
        ("benchmarks", {"tests"}),
        ("assurance", {"tests", "benchmarks"}),
    ],
)
def test_what_is_shared_lies_below_those_who_share_it(folder: str, others: set[str]) -> None:
    for path in sources(folder):
        assert not {name.partition(".")[0] for name in imported(path)} & others, path


_HSM = {"pkcs11"}
EXTRAS = {"hsm.py": _HSM, "hsm_objects.py": _HSM, "hsm_token.py": _HSM, "tpm.py": {"tpm2_pytss"}}
"""Loaded when asked for, and only there."""


@pytest.mark.parametrize("package", ["keys", "runtime", "device_sim"])
def test_a_device_needs_only_the_bare_installation(package: str) -> None:
    for path in sources(package):
        if "world" in path.parts:
            continue
        others = {name.partition(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {"variegate"}
        assert others <= BARE | EXTRAS.get(path.name, set()), path


def test_importing_the_runtime_loads_nothing_of_torch_or_onnx() -> None:
    code = (
        "import sys, variegate.runtime, variegate.device_sim.device, variegate.cli.device;"
        "unwanted = {'torch', 'onnx', 'onnxsim', 'PIL', 'pkcs11', 'tpm2_pytss'};"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & unwanted))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def trusted_files() -> list[Path]:
    """The runtime and what it imports of keys, followed through."""
    todo, seen = sources("runtime"), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path):
            if name.startswith("variegate.keys"):
                source = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
                todo += [source] if source.exists() else []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "variegate.keys":
                todo += [ROOT / "keys" / f"{alias.name}.py" for alias in node.names]
    return sorted(seen)


def code_lines(path: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    text = path.read_text("utf-8")
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            documented.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return sum(
        1
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in documented
    )


def test_the_trusted_code_is_as_small_as_the_readme_says() -> None:
    files = trusted_files()
    code = sum(map(code_lines, files))
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in files)
    stated = re.search(r"([\d,]+) lines of code \(([\d,]+) with comments", (ROOT / "README.md").read_text("utf-8"))
    assert stated is not None
    assert [int(s.replace(",", "")) for s in stated.groups()] == [code, lines]
    assert code < 1500


def test_the_readme_has_the_committed_figures() -> None:
    for path in tables.DOCUMENTS:
        assert tables.replaced(path) == path.read_text("utf-8"), "run python -m benchmarks.tables"


def test_results_come_from_committed_source() -> None:
    for path in sorted(path for folder in FOLDERS.values() for path in folder.glob("*.json")):
        document = load(path.stem)
        assert re.fullmatch(r"[0-9a-f]{40}", document["commit"]), f"{path.name} was not made from a commit"
        assert document["command"].startswith(("python -m benchmarks.", "python -m assurance.")), path.name
        assert all(isinstance(v, int | float) for v in document["figures"].values()), path.name


def test_nothing_unpickles() -> None:
    for package in MAY_IMPORT:
        for path in sources(package):
            assert not imported(path) & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, path
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call):
                    call = ast.unparse(node)
                    assert not call.startswith("torch.load("), path
                    assert "allow_pickle=True" not in call, path
