"""Options and fixtures of the benchmarks.

    pytest benchmarks                                      all of it; `make bench`; wants a quiet machine
    pytest benchmarks -k lstm --quick                      two rounds a case: whether it works, not how fast
    pytest benchmarks --benchmark-disable                  every case's correctness check, nothing timed or compiled
    pytest benchmarks --benchmark-json=benchmarks/results/latest.json

The checks and their oracles are those of the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import svg_fast

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from measure import Race


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="two rounds a case: whether it works, not how fast")
    parser.addoption(
        "--threads", type=int, default=torch.get_num_threads(), help="of a case that names no number itself [torch's]"
    )


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.update(torch=torch.__version__, svg_fast=svg_fast.__version__)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Those of --threads, or what a case names by parametrizing this fixture indirectly."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", request.config.getoption("threads")))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


@pytest.fixture
def race(benchmark: Any, pytestconfig: pytest.Config) -> Iterator[Race]:
    yield Race(benchmark, quick=pytestconfig.getoption("quick"))
    torch.compiler.reset()  # each case compiles for its own shapes


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
