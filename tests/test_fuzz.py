"""Odd and wrong calls of every op, in a process of their own: a crash is a failure with a seed, not the end of all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import svg_fast

FUZZ = Path(__file__).with_name("fuzz.py")
PACKAGES = Path(svg_fast.__file__).parents[1]
CALLS = 200
# Virtual machines are met that advertise AMX and die of it; PyTorch's bfloat16 products in the references take it.
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


@pytest.mark.parametrize("op", svg_fast.ops.__all__)
def test_odd_calls_are_refused_clearly_or_agree_with_the_reference(op: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FUZZ), op, "0", str(CALLS)],
        env=os.environ | WITHOUT_AMX | {"PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = done.stdout.splitlines()
    assert done.returncode == 0, f"{op}, {outcomes[-1:]} ends the process ({done.returncode}): {done.stderr[-3000:]}"
    usual = [line for line in outcomes if line.endswith((": refused", ": agreed"))]
    assert len(usual) == CALLS, "\n".join(line for line in outcomes if line not in usual)
    for outcome in ("refused", "agreed"):  # each is put to the test
        assert sum(line.endswith(outcome) for line in usual) > CALLS // 10
