"""The house style's sizes, held by a test: files, functions, parameters. The allow-list may only shrink."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "aerodrome"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 6

#: What is over a limit, and why it may stay for now.
ALLOWED: set[str] = {
    # An asyncio.Protocol and its typer commands take what their frameworks pass.
    "cli/tenant.py:_save parameters",
}
BANNED_NAMES = {"utils.py", "helpers.py"}
BANNED_SUFFIXES = ("Manager", "Helper", "Util", "Handler", "Base")


def code_of(text: str, tree: ast.Module) -> list[int]:
    """Return the numbers of the lines that are code: neither blank nor comment nor docstring."""
    quiet: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            quiet.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if number not in quiet and line.strip() and not line.strip().startswith("#")
    ]


@functools.cache
def find_violations(path: Path) -> set[str]:
    """Return what of a file is over a limit."""
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    code = code_of(text, tree)
    name = path.relative_to(SOURCE).as_posix()
    found = {f"{name} length"} if len(code) > MAX_FILE_LINES else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith(BANNED_SUFFIXES):
            found.add(f"{name}:{node.name} name")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            last = node.end_lineno or node.lineno
            if len([number for number in code if node.lineno <= number <= last]) > MAX_FUNCTION_LINES:
                found.add(f"{name}:{node.name} length")
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if len([a for a in arguments if a.arg not in ("self", "cls")]) > MAX_PARAMETERS:
                found.add(f"{name}:{node.name} parameters")
    return found


def test_the_source_is_there_to_be_measured() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_file_keeps_to_the_size_rules(path: Path) -> None:
    assert find_violations(path) - ALLOWED == set()
    assert path.name not in BANNED_NAMES


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=str)
def test_a_package_file_holds_no_logic(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert all(isinstance(node, (ast.Expr, ast.Import, ast.ImportFrom)) for node in tree.body)


def test_the_allow_list_holds_nothing_that_is_mended() -> None:
    everything = set().union(*(find_violations(path) for path in FILES))
    assert everything >= ALLOWED
