"""Which instruction set the kernels run on, and that the ops are right on those that this CPU would not choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import op_suite
import pytest
import torch

import svg_fast

PACKAGES = Path(svg_fast.__file__).parents[1]
FACTS = svg_fast.backend.build_info()
CAPABILITIES = ("default", "avx2", "avx512")
WIDEST = torch.backends.cpu.get_cpu_capability().lower()  # as PyTorch finds it

pytestmark = pytest.mark.skipif(not FACTS, reason="no compiled kernels")


def python(*arguments: str, capability: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"SVG_FAST_CPU_CAPABILITY": capability, "PYTHONPATH": str(PACKAGES)}
    return subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True, check=False)


def chosen(capability: str) -> str:
    """The instruction set in use where the environment names this one; "" where it names none."""
    say = "import svg_fast; print(svg_fast.backend.build_info()['cpu_capability'])"
    done = python("-c", say, capability=capability)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.splitlines()[-1]


def skip_unless_had(capability: str) -> None:
    if capability not in FACTS["cpu_capabilities"]:
        pytest.skip(f"not compiled for {capability}")
    if WIDEST not in CAPABILITIES[CAPABILITIES.index(capability) :]:
        pytest.skip(f"this CPU has no {capability}")


def test_the_widest_that_the_cpu_has_is_chosen() -> None:
    skip_unless_had(WIDEST)
    assert chosen("") == WIDEST


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_environment_chooses(capability: str) -> None:
    skip_unless_had(capability)
    assert chosen(capability) == capability


@pytest.mark.parametrize("name", ["AVX2", "sse4", "default "])
def test_another_name_is_told(name: str) -> None:
    told = chosen(name)
    assert told.startswith("ImportError: SVG_FAST_CPU_CAPABILITY must be one of default")
    assert told.endswith(f" on this machine, got {name}")


def test_facts_tell_what_was_found() -> None:
    facts = ["compiler", "cpu_capabilities", "cpu_capability", "nvcc", "cuda_architectures", "left_out"]
    assert list(FACTS) == facts
    assert set(FACTS["cpu_capabilities"]) == {name for name in CAPABILITIES if f"{name} (" not in FACTS["left_out"]}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_ops_are_right_on_every_instruction_set(capability: str) -> None:
    skip_unless_had(capability)
    if capability == FACTS["cpu_capability"]:
        pytest.skip("the one that every other test runs on")
    done = python("-m", "pytest", "-p", "no:cacheprovider", *op_suite.ARGUMENTS, capability=capability)
    assert done.returncode == 0, done.stdout[-5000:]
