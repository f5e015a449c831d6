"""The import law: firmware_ref < budgets < train < convert < scripts and tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("firmware_ref", "budgets", "train", "convert")
ABOVE = ("scripts", "tests")
# All that a firmware team installs for these packages.
LIGHT = ("firmware_ref", "budgets")
LIGHT_REQUIREMENTS = frozenset({"numpy", "flatbuffers"})


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import below ``tree``, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else str(node.module).partition(".")[0]
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            yield node.lineno, name.partition(".")[0]


def _imported_by_call(node: ast.Call) -> str:
    """The name in ``import_module("name")``; a computed one, as in the oracle, cannot be read."""
    function = node.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called not in ("__import__", "import_module") or not node.args:
        return ""
    return str(node.args[0].value) if isinstance(node.args[0], ast.Constant) else ""


def module_level(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of functions: what runs when the module is imported."""
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {id(node) for function in functions for node in ast.walk(function)}
    return ast.Module([node for node in statements if id(node) not in lazy], [])


def breaches(source: str, package: str, name: str = "module") -> list[str]:
    """Imports in ``source``, a module of ``package``, that the law forbids."""
    tree = ast.parse(source)
    forbidden = {*ORDER[ORDER.index(package) + 1 :], *ABOVE}
    found = [
        f"{name}:{line}: {package} may not import {imported}"
        for line, imported in imports(tree, package)
        if imported in forbidden
    ]
    if package in LIGHT:
        allowed = {*sys.stdlib_module_names, *LIGHT_REQUIREMENTS, *LIGHT}
        found += [
            f"{name}:{line}: {package} may import {imported} only in a function that needs it"
            for line, imported in imports(module_level(tree), package)
            if imported not in allowed | forbidden
        ]
    return found


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no module of {package} under {ROOT}"
    return found


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_from_its_left(package: str) -> None:
    found = [
        breach
        for path in sources(package)
        for breach in breaches(path.read_text(encoding="utf-8"), package, str(path))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("package", "source", "imported"),
    [
        ("firmware_ref", "import budgets", "budgets"),
        ("firmware_ref", "import torch", "torch"),
        ("firmware_ref", "try:\n    import soundfile\nexcept ImportError:\n    pass", "soundfile"),
        ("firmware_ref", "class A:\n    import scipy", "scipy"),
        ("budgets", "from train.config import Config", "train"),
        ("budgets", "def f():\n    from convert import bundle", "convert"),
        ("budgets", "def f():\n    def g():\n        import train.loop as t", "train"),
        ("train", "import numpy\nimport convert.match", "convert"),
        ("train", "import importlib\nimportlib.import_module('convert.match')", "convert"),
        ("train", "__import__('scripts')", "scripts"),
        ("convert", "from tests import conftest", "tests"),
    ],
)
def test_a_seeded_breach_is_found(package: str, source: str, imported: str) -> None:
    (breach,) = breaches(source, package)
    assert imported in breach


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("firmware_ref", "from . import graph\nimport flatbuffers, json\nimport numpy.fft"),
        ("firmware_ref", "def f():\n    import soundfile"),
        ("budgets", "from firmware_ref.arch import preset"),
        ("train", "import torch, budgets, firmware_ref"),
        ("convert", "def f():\n    import tensorflow, train.fold"),
    ],
)
def test_what_the_law_allows_is_no_breach(package: str, source: str) -> None:
    assert breaches(source, package) == []


# Refuses, as if not installed, whatever is not of the standard library or allowed by name.
BLOCKER = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {allowed!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, {root!r})
"""

IMPORT_ALL = """
for package in {packages!r}:
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, package + "."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
import budgets.__main__, firmware_ref.__main__
assert "torch" not in sys.modules and "soundfile" not in sys.modules
sys.exit(budgets.__main__.main(["report-125k"]))
"""


def blocked(script: str, allowed: frozenset[str]) -> subprocess.CompletedProcess[str]:
    """Run ``script`` where only the standard library and ``allowed`` can be imported."""
    head = BLOCKER.format(allowed=set(allowed), root=str(ROOT))
    command = [sys.executable, "-c", head + script]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_light_packages_run_where_nothing_heavier_is_installed() -> None:
    allowed = frozenset({*LIGHT, *LIGHT_REQUIREMENTS})
    result = blocked(IMPORT_ALL.format(packages=LIGHT), allowed)
    assert result.returncode == 0, result.stderr
    assert "125,330" in result.stdout and "8,637,000" in result.stdout


def test_the_blocker_blocks() -> None:
    allowed = frozenset({*LIGHT, *LIGHT_REQUIREMENTS})
    result = blocked("import torch", allowed)
    assert result.returncode != 0 and "No module named 'torch'" in result.stderr
    result = blocked("import train.config\nimport train.model", allowed | {"train"})
    assert result.returncode != 0 and "No module named 'torch'" in result.stderr


def test_a_missing_sound_library_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    script = f"""
from firmware_ref.audio import read_audio
from firmware_ref.errors import guarded
sys.exit(guarded(lambda argv: read_audio({str(tmp_path / "a.wav")!r}, 44100))())
"""
    result = blocked(script, frozenset({*LIGHT, *LIGHT_REQUIREMENTS}))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "tinyscene[audio]" in line
