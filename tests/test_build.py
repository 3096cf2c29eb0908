"""How it installs where something is missing: it works, and says in one sentence what it does without."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE", "csrc", "svg_fast")
GIVEN_UP = "svg_fast is installed without compiled kernels, slower references take their place: "

COMPLAINT = "module.cpp:1:1: fatal error: out of luck"

TOOLS = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
needs_tools = pytest.mark.skipif(
    not all(shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja", "nm", "c++")),
    reason="no C++ compiler, cmake, ninja or nm",
)


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


def python(*arguments: str, folder: Path, executable: str = sys.executable, **environment: str) -> str:
    done = subprocess.run(
        [executable, *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def give(folder: Path, *packages: str) -> None:
    """Put setuptools and these of our packages, as far as there are any, into a folder of packages."""
    for package in ("setuptools", "_distutils_hack", *packages):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            for path in Path(spec.origin).parents[1].glob(f"{package}*"):
                (folder / path.name).symlink_to(path)


def python_with(folder: Path, *packages: str) -> str:
    """An interpreter that has setuptools, these of our packages and no other."""
    venv.create(folder, symlinks=True)
    give(next(folder.glob("lib/python*/site-packages")), *packages)
    return str(folder / "bin" / "python")


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def failing_compiler(folder: Path) -> str:
    """One that works until our sources come."""
    return script(folder / "c++", f'case "$*" in *csrc*) echo "{COMPLAINT}"; exit 1;; esac; exec c++ "$@"')


def build(sources: Path, executable: str, **environment: str) -> str:
    """Why there are no kernels, as an install by this interpreter says."""
    output = python("setup.py", "build_ext", "--inplace", folder=sources, executable=executable, **environment)
    reasons = [line.partition(GIVEN_UP)[2] for line in output.splitlines() if GIVEN_UP in line]
    assert len(reasons) == 1, output
    assert "Traceback" not in output
    assert not list(sources.rglob("*.so"))
    return reasons[0]


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
        "svg_fast was installed without compiled kernels: the slower references serve every op"
        " (`pip install --verbose` tells why)",
        str(target / "svg_fast" / "__init__.py"),
        "reference",
    ]


def test_all_tools_that_are_missing_are_named(sources: Path, tmp_path: Path) -> None:
    executable = python_with(tmp_path / "venv")
    told = build(sources, executable, PATH="", CXX="")
    assert told == "missing cmake (cmake) and ninja (ninja) and a C++ compiler (c++, g++, clang++); found nothing"


@needs_tools
@pytest.mark.parametrize(
    ("packages", "told"),
    [
        (["pybind11"], "torch 2.11 or later must be installed first, found none"),
        (["torch"], "pybind11 2.12 or later must be installed first, found none"),
    ],
)
def test_packages_that_are_missing_are_named(sources: Path, tmp_path: Path, packages: list[str], told: str) -> None:
    executable = python_with(tmp_path / "venv", *packages)
    assert build(sources, executable, PATH=TOOLS) == f"cmake failed with {told!r}"


@needs_tools
def test_a_compiler_that_is_none_is_told(sources: Path, tmp_path: Path) -> None:
    told = build(sources, sys.executable, CXX=script(tmp_path / "c++", "exit 1"))
    assert told.startswith("cmake failed with 'The C++ compiler ")
    assert told.endswith(" is not able to compile a simple test program.'")


@needs_tools
def test_a_compiler_that_fails_in_the_middle_is_told(sources: Path, tmp_path: Path) -> None:
    assert build(sources, sys.executable, CXX=failing_compiler(tmp_path)) == f"cmake failed with {COMPLAINT!r}"


@needs_tools
@pytest.mark.parametrize(
    ("nvcc", "told"),
    [
        ("", "CUDA (there is no nvcc)"),
        ("exit 1", "CUDA (nvcc does not work: )"),
        ('echo "x.h:1: #error unsupported GNU \\"version\\"; sorry"; exit 1', "#error unsupported GNU version sorry)"),
    ],
)
def test_an_nvcc_that_does_not_work_is_told(sources: Path, tmp_path: Path, nvcc: str, told: str) -> None:
    path = script(tmp_path / "nvcc", nvcc) if nvcc else "OFF"
    cmake = shutil.which("cmake", path=TOOLS)
    assert cmake is not None
    options = ("-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", f"-DNVCC={path}")
    command = [cmake, "-S", str(sources), "-B", str(tmp_path / "build"), *options]
    done = subprocess.run(command, env=os.environ | {"PATH": TOOLS}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "svg_fast:" in line)
    assert "CUDA kernels for compute capabilities: ;" in line
    assert line.endswith(told)


def test_an_nvcc_that_fails_in_the_middle_leaves_the_rest(sources: Path, tmp_path: Path) -> None:
    """A cmake that finds everything and then fails, unless it is asked to leave CUDA out."""
    tools = tmp_path / "tools"
    tools.mkdir()
    folder = tmp_path / "asked"
    script(
        tools / "cmake",
        f"""case "$1 $*" in
          -S*SVG_CUDA=OFF*) echo "$*" > {folder}; echo "-- svg_fast: all is well";;
          -S*) echo > {folder}; echo "-- svg_fast: all is well";;
          *) grep -q OFF {folder} || {{ echo "lstm.cu(1): error: out of luck"; exit 1; }}
             target=$(sed 's/.*OUTPUT_DIRECTORY=\\([^ ]*\\).*/\\1/' {folder})
             mkdir -p "$target"; touch "$target/_C{sysconfig.get_config_var("EXT_SUFFIX")}";;
        esac""",
    )
    for tool in ("ninja", "c++"):
        script(tools / tool, "exit 0")
    path = os.pathsep.join((str(tools), os.defpath))
    output = python(
        *("setup.py", "build_ext", "--inplace"), folder=sources, executable=python_with(tmp_path / "venv"), PATH=path
    )
    told = "cmake failed with 'lstm.cu(1): error: out of luck'"
    assert f"svg_fast is installed without its CUDA kernels: {told}" in output
    assert f"-DSVG_NO_CUDA={told}" in folder.read_text()
    assert GIVEN_UP not in output


@needs_tools
def test_a_build_that_pip_isolates_finds_torch(sources: Path, tmp_path: Path) -> None:
    """pip hides the environment's packages so, and lends those that the build requires."""
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    give(overlay, "pybind11", "cmake", "ninja")
    (overlay / "sitecustomize.py").write_text(
        "import sys\nsys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
    )
    hidden = "import importlib.util; print(importlib.util.find_spec('torch'))"
    assert python("-c", hidden, folder=tmp_path, PYTHONPATH=str(overlay)) == "None\n"
    told = build(sources, sys.executable, PYTHONPATH=str(overlay), CXX=failing_compiler(tmp_path))
    assert told == f"cmake failed with {COMPLAINT!r}"  # and not with a lack of torch


@needs_tools
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("static const int x = 1; int f() { return x; }", ""),
        ("namespace isa_avx512 { template <class T> T f(T x) { return x; } template float f(float); }", ""),
        ("template <class T> T f(T x) { return x; } template float f(float);", "weak function outside the namespaces"),
        ("int f(); const int x = f();", "static initialiser in"),
    ],
)
def test_objects_that_could_reach_every_cpu_fail_the_build(tmp_path: Path, body: str, told: str) -> None:
    (tmp_path / "a.cpp").write_text(body)
    subprocess.run(["c++", "-c", "a.cpp"], cwd=tmp_path, check=True)
    cmake = shutil.which("cmake", path=TOOLS)
    assert cmake is not None
    check = (cmake, "-DNM=nm", "-DOBJECTS=a.o", "-P", str(ROOT / "csrc" / "check_vector_objects.cmake"))
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (told == ""), done.stderr
    assert told in done.stderr


def test_a_source_distribution_has_every_source(sources: Path, tmp_path: Path) -> None:
    make = "import setuptools.build_meta as b; print(b.build_sdist('..'))"
    name = python("-c", make, folder=sources).splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        packed = {member.name.partition("/")[2] for member in archive}
    wanted = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    assert {path for path in wanted if ".egg-info/" not in path} <= packed
