"""The arrows between the packages, and the size of a file, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "svg_fast").rglob("*.py"))
MAX_LINES = 400

# part -> the parts of svg_fast that it may import, beside itself; nobody imports cli, only tests import testing
BELOW_MODELS = {"ops", "backend", "files", "graphs"}
BELOW_CLI = {"training", "evaluation", "benchmarks", "data", "compat", "models", *BELOW_MODELS}
ALLOWED = {
    "files": set[str](),
    "graphs": set[str](),
    "reference": set[str](),
    "triton": {"reference"},
    "ops": {"reference", "triton"},
    "backend": {"kernels", "ops"},
    "benchmarks": set[str](),
    "kernels": {"triton"},
    "testing": {"ops"},
    "nn": {"ops"},
    "models": BELOW_MODELS,
    "data": {"reference", "ops", "files"},
    "training": BELOW_CLI,
    "evaluation": BELOW_CLI,
    "compat": BELOW_CLI,
    "cli": BELOW_CLI,
    "__init__": {"kernels", "nn", *BELOW_CLI},
    "__main__": {"cli"},
}


def part(source: Path) -> str:
    return source.relative_to(ROOT / "svg_fast").with_suffix("").parts[0]


PARTS = {part(source) for source in SOURCES}


def imports(source: Path) -> Iterator[str]:
    """Absolute names of the modules that a source imports, wherever in the file."""
    package = ("svg_fast", *source.relative_to(ROOT / "svg_fast").parent.parts)
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(source: Path) -> None:
    here = part(source)
    inside = {name.split(".")[1] for name in imports(source) if name.startswith("svg_fast.")} & PARTS - {here}
    assert inside <= ALLOWED[here], f"{here} may import {sorted(ALLOWED[here])}, got {sorted(inside)}"


def test_reference_imports_only_torch_and_numpy() -> None:
    names = {name.split(".")[0] for source in SOURCES if part(source) == "reference" for name in imports(source)}
    assert names <= {"torch", "numpy", "svg_fast", "math", "collections", "__future__"}


@pytest.mark.parametrize("folder", ["svg_fast", "csrc", "tests", "benchmarks"])
def test_no_file_is_longer_than_a_reader_is_patient(folder: str) -> None:
    paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".h", ".cpp")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert lengths
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}
