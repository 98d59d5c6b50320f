"""What the sources look like: sizes, words, and what is never used."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("elastic", "incentives", "model_zoo")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
UNPICKLERS = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib")
UNPICKLING = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle")}
OTHER_MEANING: set[tuple[str, str]] = set()
"""A stretch of a tensor, not of time."""


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", [*SOURCES, *EXAMPLES], ids=name_of)
def test_nothing_is_ever_unpickled(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            imported = []
        assert not {each.partition(".")[0] for each in imported} & set(UNPICKLERS), imported
        assert "torch.load" not in imported
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in UNPICKLING, f"line {node.lineno}"


def chosen_names(tree: ast.Module) -> Iterator[str]:
    """Identifiers that this file chose, not those of the libraries it uses."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name
            case ast.alias(asname=str(name)):
                yield name


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "elastic")], ids=name_of)
def test_a_round_is_called_a_round(path: Path) -> None:
    for name in chosen_names(parsed(path)):
        if (name_of(path), name) not in OTHER_MEANING:
            assert not any(word in name.lower() for word in ("epoch", "window")), name


def test_exceptions_to_the_words_are_still_needed() -> None:
    for path, name in OTHER_MEANING:
        assert name in set(chosen_names(parsed(ROOT / path)))


@pytest.mark.parametrize("path", [*SOURCES, *EXAMPLES], ids=name_of)
def test_every_file_and_every_public_class_says_what_it_is(path: Path) -> None:
    tree = parsed(path)
    assert ast.get_docstring(tree), "the file has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
