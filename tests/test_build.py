"""An install on a machine that cannot compile: it works, and says in one sentence what it does without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE", "csrc", "svg_fast")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def python(*arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_install_without_a_compiler_works_and_says_so(sources: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--verbose", "--target", str(target))
    output = python("-m", "pip", "install", *options, str(sources), folder=tmp_path, CXX="/nonexistent")
    warnings = [line for line in output.splitlines() if "without compiled kernels" in line]
    assert len(warnings) == 1, output
    assert "missing a C++ compiler (/nonexistent); found cmake at " in warnings[0]
    assert "Traceback" not in output

    say = "import svg_fast; print(svg_fast.__file__); print(svg_fast.backend.served_by('moving_mnist_clips'))"
    lines = python("-c", say, folder=target).splitlines()
    assert lines == [
        "svg_fast was installed without compiled kernels: the slower references serve every op",
        str(target / "svg_fast" / "__init__.py"),
        "reference",
    ]
