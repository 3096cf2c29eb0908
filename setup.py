"""Packaging of the compiled kernels: CMakeLists.txt says how they are built, pyproject.toml says the rest.

An install without them works and is slower, so what is missing for a build is told in one sentence and forgiven.
"""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILERS = ("c++", "g++", "clang++")


class BuildError(Exception):
    """Why there are no kernels, in words that fit after a colon."""


def find(tool: str) -> str | None:
    """Where a tool is, those that pip installed beside this interpreter first."""
    folders = (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
    return shutil.which(tool, path=os.pathsep.join(folders))


def find_tools() -> dict[str, str]:
    """Paths of cmake, ninja and the compiler that CXX names, or else the usual ones."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    wanted = {"cmake": ["cmake"], "ninja": ["ninja"], "a C++ compiler": named or list(COMPILERS)}
    found = {what: next(filter(None, map(find, names)), "") for what, names in wanted.items()}
    there = [f"{what} at {path}" for what, path in found.items() if path]
    missing = [f"{what} ({', '.join(wanted[what])})" for what, path in found.items() if not path]
    if missing:
        raise BuildError(f"missing {' and '.join(missing)}; found {' and '.join(there) or 'nothing'}")
    return found


def reason(output: str) -> str:
    """The first error in what a tool printed; CMake indents it below a heading."""
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    for k, line in enumerate(lines):
        if line.startswith("CMake Error"):
            below = itertools.takewhile(lambda text: text.startswith(" "), lines[k + 1 : k + 4])
            return " ".join(" ".join(below).split()) or line
        if "error:" in line:
            return line
    return lines[-1]


def run(*command: str | Path) -> str:
    """What a tool printed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{Path(command[0]).name} failed with {reason(done.stdout)!r}")
    return done.stdout


class CMakeBuild(build_ext):
    """Builds the one extension with CMake and Ninja."""

    def copy_extensions_to_source(self) -> None:
        for earlier in (ROOT / "svg_fast").glob("*.so"):  # of an earlier editable install
            earlier.unlink()
        super().copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.unlink(missing_ok=True)
        try:
            self.compile(library.parent)
            if not library.exists():
                raise BuildError(f"CMake made no {library.name}")
        except (BuildError, OSError) as error:
            self.warn(f"svg_fast is installed without compiled kernels, slower references take their place: {error}")

    def compile(self, target: Path) -> None:
        try:
            told = self.cmake(target)
        except BuildError as error:  # of nvcc, or one that comes again
            told = self.cmake(target, "-DSVG_CUDA=OFF", f"-DSVG_NO_CUDA={error}")
            self.warn(f"svg_fast is installed without its CUDA kernels: {error}")
        self.announce(told, level=logging.INFO)

    def cmake(self, target: Path, *options: str) -> str:
        """Builds into the folder `target`; what was found, in a line."""
        tools = find_tools()
        folder = Path(self.build_temp).resolve()
        shutil.rmtree(folder, ignore_errors=True)  # paths in it may be those of an environment that is gone
        configured = run(
            *(tools["cmake"], "-S", ROOT, "-B", folder, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
            *options,
        )
        run(tools["cmake"], "--build", folder)
        told = next(line for line in configured.splitlines() if "svg_fast:" in line)
        return told.removeprefix("-- ")


setup(ext_modules=[Extension("svg_fast._C", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
