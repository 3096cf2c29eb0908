"""Faults planted in kernels, to show that the emulator and the tests' comparisons notice them.

A fault is a change of a source's text. The changed kernel is compiled under a namespace of its own and checked in a
child process, in several orders of threads; a fault is caught where the check fails, the kernel is stopped or crashes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emulation
import torch

ROOT = emulation.ROOT
FOLDER = emulation.FOLDER / "faults"
COMPILERS = 2  # at once
SECONDS = 60  # that a check may take, before it counts as one without end
SEEDS = (1, 5, 6)  # of the order of threads; asynchronous stores land at random, at once, late

Check = Callable[[Any], None]


@dataclass(frozen=True)
class Fault:
    """One change: `text`, which `file` has exactly once, becomes `instead`; `unit` is the .cu that is then compiled.

    No change at all, a `text` of "", is the sound kernel. Paths are relative to the repository.
    """

    name: str
    file: str
    text: str
    instead: str
    unit: str = ""

    def compiled(self) -> str:
        return self.unit or str(Path(self.file).with_suffix(".cu"))

    def namespace(self) -> str:
        digest = hashlib.sha256("\0".join((self.file, self.text, self.instead, self.compiled())).encode())
        return f"svg_fast_fault_{digest.hexdigest()[:16]}"

    def change(self, source: str) -> str:
        if self.text and source.count(self.text) != 1:
            raise ValueError(f"{self.file} has the text of {self.name!r} {source.count(self.text)} times, wanted once")
        return source.replace(self.text, self.instead) if self.text else source


def sound(file: str, unit: str = "") -> Fault:
    """The kernel as it is."""
    return Fault("as it is", file, "", "", unit)


def compile_all(faults: Sequence[Fault]) -> dict[Fault, Path]:
    """The library of each fault, compiled where sources are newer. Raises RuntimeError where the compiler refuses."""
    emulator = emulation.build()
    changed = [fault.change((ROOT / fault.file).read_text()) for fault in faults]
    for unit in {fault.compiled() for fault in faults}:
        _prelude(unit)
    with ThreadPoolExecutor(COMPILERS) as pool:
        libraries = pool.map(lambda fault, source: _compile(fault, source, emulator), faults, changed)
        return dict(zip(faults, libraries, strict=True))


def _sources() -> list[Path]:
    folders = (ROOT / "csrc", ROOT / "tests" / "emulator")
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".h", ".cuh", ".cu"))


def _compile(fault: Fault, changed: str, emulator: Path) -> Path:
    """Only the one .cu, from a tree of links to the sources in which the changed file is a file."""
    tree = FOLDER / fault.namespace()
    library = tree / "fault.so"
    newest = max(path.stat().st_mtime for path in [*_sources(), emulator / "libemulator.so"])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    shutil.rmtree(tree, ignore_errors=True)
    for path in _sources():
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)
    (tree / fault.file).unlink()
    (tree / fault.file).write_text(changed)
    command = [*_command(fault.compiled()), "-include", str(_prelude(fault.compiled()))]
    command += ["-x", "c++", str(ROOT / fault.compiled()), f"-DSVG_EMULATED_LIBRARY={fault.namespace()}"]
    for folder in ("csrc", "tests"):
        command = [argument.replace(f"{ROOT}/{folder}", f"{tree}/{folder}") for argument in command]
    command += ["-shared", "-o", str(library), f"-L{emulator}", "-lemulator", f"-Wl,-rpath,{emulator}"]
    _run(f"the change {fault.name!r}", [*command, f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"])
    return library


def _command(unit: str) -> list[str]:
    """The compiler and the flags with which the build compiles a .cu, without optimisation, which takes longer."""
    commands = json.loads((emulation.FOLDER / "compile_commands.json").read_text())
    arguments = shlex.split(next(entry["command"] for entry in commands if entry["file"] == str(ROOT / unit)))
    for option, values in (("-o", 1), ("-c", 1), ("-x", 1)):
        at = arguments.index(option)
        del arguments[at : at + 1 + values]
    return [*arguments, "-O0", "-w"]


def _prelude(unit: str) -> Path:
    """PyTorch's headers, compiled ahead: to read them takes longer than all the rest."""
    command = _command(unit)
    names = ("c/shim", "library", "ops", "stableivalue_conversions", "tensor")
    text = "".join(f"#include <torch/csrc/stable/{name}.h>\n" for name in names)
    text += f"// PyTorch {torch.__version__}, by {shlex.join(command)}\n"
    header = FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.h"
    compiled = header.with_suffix(".h.gch")
    if not compiled.exists():
        FOLDER.mkdir(exist_ok=True)
        header.write_text(text)
        _run("PyTorch's headers", [*command, "-x", "c++-header", str(header), "-o", str(compiled)])
    return header


def _run(what: str, command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=emulation.FOLDER, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} does not compile: {done.stderr[-3000:]}")


def noticed(
    library: Path,
    fault: Fault,
    check: Check,
    seeds: Sequence[int] = SEEDS,
    schemas: Callable[[], Sequence[str]] = emulation.schemas,
) -> list[str]:
    """What noticed the fault under each seed; "" where nothing did.

    `check` is given the fault's ops, like `torch.ops.svg_fast`, and raises where they are wrong.
    """

    def run(seed: int) -> None:
        os.environ["SVG_EMULATED_SEED"] = str(seed)
        torch.set_num_threads(1)  # those of the parent are not here
        check(emulation.define(library, fault.namespace(), schemas()))

    return [_in_a_child(functools.partial(run, seed)) for seed in seeds]


def _in_a_child(work: Callable[[], None]) -> str:
    """What went wrong with the work, in a process that may crash or never end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work()
            text = ""
        except BaseException as error:
            text = "".join(traceback.format_exception_only(error)) or type(error).__name__
        os.write(writing, text.encode()[:4000])
        os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            return f"no end within {SECONDS} s"
        text = os.read(reading, 4096).decode(errors="replace")
    finally:
        os.close(reading)
        status = os.waitpid(child, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else text
