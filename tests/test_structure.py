"""Rules that keep the code readable, checked on every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("autopar", "calibration", "examples", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SOURCES = [path for path in FILES if path.is_relative_to(ROOT / "autopar")]
TEXTS = sorted(
    path
    for pattern in ("*.md", "*.toml", "*.txt", "Makefile", ".ci/*", "scripts/*", "docs/**/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
FILE_LINES, FUNCTION_LINES = 500, 60
TORCH_FREE = (
    "autopar.plan", "autopar.graph", "autopar.cluster", "autopar.show", "autopar.cli",
)  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def long_functions(path: Path) -> list[str]:
    return [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]


def dotted(node: ast.AST) -> str:
    """The dotted name that an expression spells, "" for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def torch_names(path: Path) -> list[str]:
    """Every dotted torch name that a file imports or spells out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(dotted(node))
    return [item for item in found if item.split(".")[0] == "torch"]


def is_private(dotted_name: str) -> bool:
    parts = dotted_name.split(".")
    return any(part.startswith("_") and not part.startswith("__") for part in parts)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_sizes(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    assert long_functions(path) == []


def test_private_parts_of_torch_are_used_in_one_file_at_most():
    users = [name(path) for path in SOURCES if any(map(is_private, torch_names(path)))]
    assert len(users) <= 1, users


@pytest.mark.parametrize("module", TORCH_FREE)
def test_is_read_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("path", [*FILES, *TEXTS], ids=name)
def test_no_path_of_one_machine(path):
    places = "|".join(("work", "tmp", "home", "root", "Users"))
    found = re.findall(rf"(?<![\w.$}}/])/(?:{places})/\w+", path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_public_names():
    code = (
        "import sys, autopar\n"
        "from autopar.plan import Mesh\n"
        "assert 'torch' not in sys.modules\n"
        "assert callable(autopar.plan) and autopar.plan.__module__ == 'autopar.api'\n"
        "import autopar.plan_file, autopar.plan\n"
        "assert callable(autopar.plan)\n"
        "assert all(hasattr(autopar, name) for name in autopar.__all__)\n"
        "assert dir(autopar) == sorted(autopar.__all__)\n"
        "assert not hasattr(autopar, 'nonsense')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_rules_notice_what_they_forbid(tmp_path):
    path = tmp_path / "bad.py"
    body = "\n".join(f"    x{i} = {i}" for i in range(FUNCTION_LINES))
    path.write_text(f"import torch\ndef f():\n{body}\ntorch._C.y\nfrom torch.fx import _x\n")
    assert long_functions(path) == ["f (61 lines)"]
    assert sum(map(is_private, torch_names(path))) >= 2
