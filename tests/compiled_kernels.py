"""What the compiler made of CUDA kernels: registers, stack, shared memory and instructions, read from a library."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_ARCHITECTURE = re.compile(r"arch = sm_(\d+)")
_FUNCTION = re.compile(r"Function\s*:?\s*(\w+)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# An instruction: its place, perhaps a predicate, its name.
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


@dataclass
class Kernel:
    """One kernel for one architecture, 80 or 90. Of memory: bytes a thread (stack, local) and a block (shared)."""

    name: str
    architecture: int
    registers: int
    stack: int
    shared: int
    local: int
    instructions: Counter[str] = field(default_factory=Counter)

    def count(self, instruction: str) -> int:
        """How many instructions of this name there are, or whose names go on from it: "LDG.E.128", "HMMA"."""
        return sum(n for name, n in self.instructions.items() if f"{name}.".startswith(f"{instruction}."))

    def is_empty(self) -> bool:
        """Whether it touches no memory: the body was left out for this architecture."""
        return not any(name.startswith(("LD", "ST", "RED", "ATOM")) for name in self.instructions)

    def spills(self) -> bool:
        """Whether registers went to memory."""
        return self.stack > 0 or self.local > 0 or self.count("STL") > 0


def missing() -> str:
    """Which tool there is not; "" where all are there."""
    return "" if _cuobjdump() else "no cuobjdump, which Triton's wheel has"


def _cuobjdump() -> str | None:
    triton = importlib.util.find_spec("triton")
    folders = triton.submodule_search_locations if triton else None
    path = Path(next(iter(folders))) / "backends/nvidia/bin/cuobjdump" if folders else None
    return str(path) if path and path.exists() else shutil.which("cuobjdump")


def _dump(option: str, library: Path) -> list[str]:
    tool = _cuobjdump()
    assert tool is not None
    done = subprocess.run([tool, option, str(library)], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def _demangled(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def read(library: Path) -> list[Kernel]:
    """The kernels of a shared library, for every architecture that it has machine code for."""
    kernels: dict[tuple[int, str], Kernel] = {}
    architecture, name = 0, ""
    for line in _dump("-res-usage", library):
        if found := _ARCHITECTURE.search(line):
            architecture = int(found[1])
        elif found := _FUNCTION.search(line):
            name = found[1]
        elif found := _USAGE.search(line):
            registers, stack, shared, local = map(int, found.groups())
            kernels[architecture, name] = Kernel(name, architecture, registers, stack, shared, local)
    for line in _dump("-sass", library):
        if found := _ARCHITECTURE.search(line):
            architecture = int(found[1])
        elif found := _FUNCTION.search(line):
            name = found[1]
        elif found := _INSTRUCTION.search(line):
            kernels[architecture, name].instructions[found[1]] += 1
    for kernel, text in zip(kernels.values(), _demangled([name for _, name in kernels]), strict=True):
        kernel.name = text
    return list(kernels.values())
