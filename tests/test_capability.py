"""Which instruction set the kernels run on, and that the ops are right on those that this CPU would not choose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def not_had(capability: str) -> str:
    """Why not, or "" where it is."""
    if capability not in FACTS["cpu_capabilities"]:
        return f"not compiled for {capability}"
    return "" if WIDEST in CAPABILITIES[CAPABILITIES.index(capability) :] else f"this CPU has no {capability}"


def skip_unless_had(capability: str) -> None:
    if not_had(capability):
        pytest.skip(not_had(capability))


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


@pytest.fixture(scope="module")
def op_suites() -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The op tests on every instruction set but the one that all other tests run on, side by side."""
    with ThreadPoolExecutor() as pool:
        yield {
            capability: pool.submit(
                python, "-m", "pytest", "-p", "no:cacheprovider", *op_suite.ARGUMENTS, capability=capability
            )
            for capability in CAPABILITIES
            if not not_had(capability) and capability != FACTS["cpu_capability"]
        }


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_ops_are_right_on_every_instruction_set(
    capability: str, op_suites: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    skip_unless_had(capability)
    if capability == FACTS["cpu_capability"]:
        pytest.skip("the one that every other test runs on")
    done = op_suites[capability].result()
    assert done.returncode == 0, done.stdout[-5000:]
