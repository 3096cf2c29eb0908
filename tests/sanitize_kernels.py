"""The CUDA kernels, emulated, under ThreadSanitizer, and under AddressSanitizer with UndefinedBehaviorSanitizer.

`make sanitize`, or `python tests/sanitize_kernels.py [arguments of pytest]`. To ThreadSanitizer each CUDA thread is a
thread, ordered by the kernel's own barriers alone, so that it sees what the emulator does not: accesses to shared and
global memory in plain C++. That both find their faults is shown first, and that a sound kernel has none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import op_suite

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


@dataclass(frozen=True)
class Sanitizer:
    """How a process runs with it; the sample of a fault that it finds, and what it says."""

    name: str
    runtime: str
    options: dict[str, str]
    fault: str
    says: str


SANITIZERS = (
    Sanitizer(
        "thread",
        "libtsan.so",
        {
            "TSAN_OPTIONS": f"halt_on_error=1 report_mutex_bugs=0 suppressions={TESTS / 'emulator' / 'tsan.supp'}",
            "SVG_EMULATED_DEVICE": "sm_90 16",  # it takes 8128 threads at most: not the 256 of each of 32 blocks
        },
        "sample_unordered",
        "ThreadSanitizer: data race",
    ),
    Sanitizer(
        "address,undefined",
        "libasan.so",
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
        "sample_beyond",
        "AddressSanitizer: use-after-poison",
    ),
)


def runtime(library: str) -> str:
    """Where the compiler has it."""
    command = ["c++", f"-print-file-name={library}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def environment(sanitizer: Sanitizer, preload: bool) -> dict[str, str]:
    variables = os.environ | sanitizer.options | {"SVG_EMULATED_SANITIZE": sanitizer.name, "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join((str(TESTS), str(ROOT)))
    if preload:
        variables["LD_PRELOAD"] = f"{runtime(sanitizer.runtime)} {runtime('libstdc++.so')}"
    return variables


def run(sanitizer: Sanitizer, *arguments: str, preload: bool = True) -> subprocess.CompletedProcess[str]:
    # Where every address is drawn at random, ThreadSanitizer may find its own taken.
    command = ["setarch", "-R", sys.executable, *arguments]
    variables = environment(sanitizer, preload)
    return subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def show_that_faults_are_found(sanitizer: Sanitizer) -> None:
    load = "import emulation as e, torch; o = e.samples(); "
    sound = run(sanitizer, "-c", load + "o.sample_reverse(torch.ones(96))")
    if sound.returncode:
        raise SystemExit(f"{sanitizer.name}: a sound kernel fails: {sound.stdout[-3000:]}")
    done = run(sanitizer, "-c", load + f"o.{sanitizer.fault}(torch.ones(96))")
    if done.returncode == 0 or sanitizer.says not in done.stdout:
        raise SystemExit(f"{sanitizer.name}: {sanitizer.fault} is not found: {done.stdout[-3000:]}")
    print(f"found, as it must be: {sanitizer.says}", flush=True)


def main(arguments: list[str]) -> int:
    failed = []
    for sanitizer in SANITIZERS:
        built = run(sanitizer, "-c", "import emulation; emulation.build()", preload=False)
        if built.returncode:
            raise SystemExit(built.stdout[-3000:])
        show_that_faults_are_found(sanitizer)
        tests = arguments or op_suite.EMULATED_ARGUMENTS
        done = run(sanitizer, "-m", "pytest", "-p", "emulation", "-p", "no:cacheprovider", *tests)
        print(done.stdout[-5000:], flush=True)
        failed += [sanitizer.name] if done.returncode else []
    print(f"failed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
