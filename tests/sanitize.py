"""The op tests under AddressSanitizer and UndefinedBehaviorSanitizer, with each instruction set that this CPU has.

`make sanitize`, or `python tests/sanitize.py [arguments of pytest]`. The library is compiled into build/sanitized, with
a copy of the Python sources beside it; what is installed stays as it is. That a read beyond a tensor's end and an
overflow end the process is shown first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import op_suite

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "sanitized"
PACKAGE = FOLDER / "svg_fast"
FAULTS = PACKAGE / "libfaults.so"

TENSOR = "x = torch.ones(40)"
MUST_STOP = {
    "beyond(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(40))": "AddressSanitizer: heap-buffer-overflow",
    "overflow(ctypes.c_int64(2**63 - 1))": "runtime error: signed integer overflow",
}


def build() -> None:
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(ROOT / "svg_fast", PACKAGE, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    objects = FOLDER / "objects"
    options = (f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={PACKAGE}")
    configure: list[str | Path] = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        objects,
        "-G",
        "Ninja",
        "-DSANITIZE=address,undefined",
        "-DSVG_CUDA=OFF",
        *options,
    ]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", objects], check=True)


def runtime(library: str) -> str:
    """Where the compiler has it."""
    command = ["c++", f"-print-file-name={library}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# The sanitizers must be in the process before anything else; and Python leaks by intent.
SANITIZED = os.environ | {
    "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "PYTHONPATH": str(FOLDER),
}


def ask(code: str, capability: str = "") -> subprocess.CompletedProcess[str]:
    """What sanitized Python code prints."""
    variables = SANITIZED | {"SVG_FAST_CPU_CAPABILITY": capability}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=FOLDER, env=variables, capture_output=True, text=True, check=False)


def show_that_faults_are_found() -> None:
    for call, message in MUST_STOP.items():
        done = ask(f"import ctypes, torch; {TENSOR}; ctypes.CDLL({str(FAULTS)!r}).{call}")
        if done.returncode == 0 or message not in done.stderr:
            raise SystemExit(f"the sanitizers do not find {call}: {done.stderr[-2000:]}")
        print(f"found, as it must be: {message}")


def capabilities() -> list[str]:
    """The instruction sets that were compiled and that this CPU has."""
    compiled = ask("import svg_fast; print(svg_fast.__file__, *svg_fast.backend.build_info()['cpu_capabilities'])")
    file, *names = compiled.stdout.split() or [compiled.stderr]
    if file != str(PACKAGE / "__init__.py"):
        raise SystemExit(f"the sanitized library does not load: {file}")
    return [name for name in names if ask("import svg_fast", name).returncode == 0]


def main(arguments: list[str]) -> int:
    build()
    show_that_faults_are_found()
    command = [sys.executable, "-m", "pytest", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    failed = []
    for name in capabilities():
        print(f"instruction set {name}", flush=True)
        variables = SANITIZED | {"SVG_FAST_CPU_CAPABILITY": name}
        tests = arguments or op_suite.ARGUMENTS
        done = subprocess.run([*command, *tests], cwd=FOLDER, env=variables, check=False)
        failed += [name] if done.returncode else []
    print(f"failed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
