"""The CUDA kernels run by the emulator, in place of the CPU's: as a library, and as a plugin of pytest.

`PYTHONPATH=tests python -m pytest -p emulation tests/test_ops.py` runs ordinary tests on emulated kernels: host
functions, launches and kernels are the real sources of csrc/cuda. SVG_EMULATED_SEED picks the order of threads and
SVG_EMULATED_DEVICE what the host functions are told ("sm_80 108"); see tests/emulator/engine.h. With
SVG_EMULATED_SANITIZE="thread" the kernels are compiled for that sanitizer (tests/sanitize.py).
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import svg_fast
from svg_fast.ops._declare import REFERENCE_KERNELS

ROOT = Path(__file__).resolve().parents[1]
SANITIZE = os.environ.get("SVG_EMULATED_SANITIZE", "")
FOLDER = ROOT / "build" / "-".join(filter(None, ["emulated", *SANITIZE.split(",")]))
NAMESPACE = "svg_fast_emulated"
# Compilers run without the sanitizers that may be in this process.
TOOLS = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
TOOLS["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), TOOLS.get("PATH", os.defpath)))
# The ops of tests/emulator/samples.cu.
SAMPLES = [
    "sample_mma(Tensor a, Tensor b, Tensor c) -> Tensor",
    "sample_product(Tensor a, Tensor b, Tensor like) -> Tensor",
    "sample_reverse(Tensor x) -> Tensor",
    "sample_exchange(Tensor x, int steps) -> Tensor",
    "sample_running_sum(Tensor x, Tensor(a!) flags) -> Tensor",
    "sample_unordered(Tensor like) -> Tensor",
    "sample_beyond(Tensor like) -> Tensor",
]
MISSING = ", ".join(  # for an emulation here
    [
        *(f"no {tool}" for tool in ("cmake", "ninja", "c++") if shutil.which(tool, path=TOOLS["PATH"]) is None),
        *(["no x86-64 CPU"] if platform.machine() != "x86_64" else []),
    ]
)

_libraries: list[torch.library.Library] = []


def build() -> Path:
    """The folder with the emulator and what runs on it, compiled where sources are newer. Raises RuntimeError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (FOLDER / "build.ninja").exists():
            options = ("-DEMULATE=ON", "-DSVG_CUDA=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DSANITIZE={SANITIZE}")
            python = f"-DPython_EXECUTABLE={sys.executable}"
            _run("cmake", "-S", ROOT, "-B", FOLDER, "-G", "Ninja", python, *options)
        _run("cmake", "--build", FOLDER, "--target", "tests/emulator/all")
    return FOLDER / "tests" / "emulator"


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, env=TOOLS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-5000:])


def schemas() -> list[str]:
    """Those of svg_fast."""
    declared = (getattr(torch.ops.svg_fast, op).default._schema for op in REFERENCE_KERNELS)
    return [str(schema).removeprefix("svg_fast::") for schema in declared]


def define(library: Path, namespace: str, schemas: Sequence[str]) -> Any:
    """Load a library of kernels under this namespace, with these schemas: its ops."""
    declared = torch.library.Library(namespace, "DEF")
    _libraries.append(declared)
    for schema in schemas:
        declared.define(schema)
    torch.ops.load_library(library)
    return getattr(torch.ops, namespace)


def serves(op: str, namespace: str = NAMESPACE) -> bool:
    """Whether the library has a kernel of this op."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{op}", "CPU")


@functools.cache
def kernels() -> Any:
    """The emulated kernels, as ops beside those of svg_fast."""
    return define(build() / f"{NAMESPACE}.so", NAMESPACE, schemas())


@functools.cache
def samples() -> Any:
    """The kernels that test the emulator itself."""
    return define(build() / "samples.so", "svg_fast_samples", SAMPLES)


def attach() -> list[str]:
    """Let emulated kernels serve the ops of svg_fast on the CPU; names of those that there are."""
    ops = kernels()
    override = torch.library.Library("svg_fast", "IMPL")
    _libraries.append(override)
    emulated = [op for op in svg_fast.backend.ops() if serves(op)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        for op in emulated:
            override.impl(op, getattr(ops, op).default, "CPU", allow_override=True)
    return emulated


_emulated: list[str] = []


def pytest_configure() -> None:
    # the threads of a cooperative launch are alive together, each with a stack: too many on 132 multiprocessors
    os.environ.setdefault("SVG_EMULATED_DEVICE", "sm_90 32")
    # Host functions multiply 16-bit matrices by PyTorch. Its oneDNN would take the AMX unit for them, which some
    # virtual machines show and do not have.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    _emulated.extend(attach())


def pytest_report_header() -> str:
    return f"emulated: {', '.join(_emulated) or 'no kernels'}"
