"""The emulator computes what the instructions mean, and notices what kernels do wrong; on the kernels of samples.cu."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulation
import planted_faults
import pytest
import torch
from planted_faults import Fault, sound
from torch import Tensor

SAMPLES = "tests/emulator/samples.cu"
SCHEMAS = emulation.SAMPLES
STEPS = 5

pytestmark = pytest.mark.skipif(bool(emulation.MISSING), reason=emulation.MISSING)


def whole_numbers(*shape: int) -> Tensor:
    """Exact as halves, and so are sums of their products as floats."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(1)).float()


def expect(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def check_mma(ops: Any) -> None:
    a, b, c = (whole_numbers(rows, columns) for rows, columns in ((16, 16), (16, 8), (16, 8)))
    by_column = a.T.contiguous(), b, c.T.contiguous()
    expect(ops.sample_mma(*by_column).T, a @ b + c)


def check_product(ops: Any) -> None:
    a, b = whole_numbers(16, 16), whole_numbers(8, 16)
    expect(ops.sample_product(a, b, torch.empty(16, 8)), a @ b.T)


def check_reverse(ops: Any) -> None:
    x = whole_numbers(96)
    expect(ops.sample_reverse(x), x.flip(0) + x.flip(0).view(48, 2).flip(1).flatten())


def check_exchange(ops: Any) -> None:
    x = want = 64 * whole_numbers(4, 64)
    for _ in range(STEPS):
        want = want.mean(0).flip(0).expand(4, 64)
    expect(ops.sample_exchange(x, STEPS), want)


def check_running_sum(ops: Any) -> None:
    x = whole_numbers(5, 64)
    want = [x[0]]
    for row in x[1:]:
        want.append(want[-1].flip(0) + row)
    expect(ops.sample_running_sum(x, torch.zeros(5, dtype=torch.int32)), torch.stack(want))


CHECKS = [check_mma, check_product, check_reverse, check_exchange, check_running_sum]


@pytest.fixture(scope="module")
def samples() -> Any:
    return emulation.samples()


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("check", CHECKS)
def test_samples_are_right(
    samples: Any, check: Callable[[Any], None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVG_EMULATED_SEED", str(seed))
    check(samples)


WAIT = "mbarrier_wait(barrier, t / 2 % 2);"
LOST = "peer = 0; peer < kBlocks; ++peer) {\n      store"
# What is checked; name, text and what it becomes; what must be told of it, as a pattern.
FAULTS = [
    (check, Fault(name, SAMPLES, text, instead), told)
    for check, name, text, instead, told in [
        (check_reverse, "no barrier", "(x + k));\n  block_sync();", "(x + k));", "race"),
        (check_reverse, "a barrier of the warp only", "(x + k));\n  block", "(x + k));\n  warp", "race"),
        (
            check_reverse,
            "one element too far",
            "(&all[kThreads - 1 - k])",
            "(&all[kThreads - k])",
            "outside every variable",
        ),
        (check_reverse, "not aligned", "mine = load_shared(", "mine = load_shared(2 + ", "4 bytes at offset"),
        (
            check_reverse,
            "half of a warp shuffles",
            "+ shuffle_xor(mine, 1)",
            "+ (k % 2 ? shuffle_xor(mine, 1) : 0)",
            "a shuffle|at shuffle",
        ),
        (check_reverse, "the wrong neighbour", "(mine, 1)", "(mine, 2)", "not equal"),
        (
            check_reverse,
            "reads what it writes",
            "y[k] = mine",
            "store_global(y + k, mine); y[k] = load_read_only(y + k)",
            "read-only",
        ),
        (check_exchange, "no wait for the mbarrier", WAIT, "", "race|more arrivals"),
        (check_exchange, "the first warp alone waits", WAIT, f"if (k < kWarp) {WAIT}", "race"),
        (check_exchange, "parity of the other phase", "t / 2 % 2", "1 - t / 2 % 2", "race|more arrivals"),
        (check_exchange, "a lost store", LOST, LOST.replace("= 0", "= 1"), "deadlock"),
        (check_exchange, "not armed again", "(k == 0) {\n      mb", "(k < 0) {\n      mb", "deadlock"),
        (check_exchange, "armed for too few bytes", "received[now]))", "received[now]) - 4)", "race"),
        (check_exchange, "no barrier of the cluster", "cluster_arrive();\n  cluster_wait();", "block_sync();", "init"),
        (check_exchange, "init not fenced", "    fence_mbarrier_init();\n", "", "not fenced"),
        (
            check_exchange,
            "beyond the cluster",
            "(to, peer)",
            "(to, peer + 1)",
            "block 4 of a cluster of 4|another block",
        ),
        (check_exchange, "one buffer", "now = t % 2", "now = 0 * t", "race|more arrivals"),
        (check_exchange, "data and mbarrier apart", "(barrier, peer)", "(barrier, rank)", "in another block"),
        (check_running_sum, "no wait for the flag", "wait_at_least(flags + block - 1, 1);", "", "race"),
        (check_running_sum, "a flag nobody raises", "(flags + block - 1, 1)", "(flags + block, 1)", "for a flag"),
        (check_running_sum, "one thread alone waits", "}\n    block_sync();", "}", "race"),
        (check_running_sum, "released too early", "  block_sync();\n  if", "  if", "race"),
        (check_running_sum, "not alive together", ".cooperative = true", ".cooperative = false", "deadlock|race"),
    ]
]


@pytest.fixture(scope="module")
def libraries() -> dict[Fault, Path]:
    return planted_faults.compile_all([sound(SAMPLES), *(fault for _, fault, _ in FAULTS)])


@pytest.mark.parametrize("check", CHECKS)
def test_the_sound_kernel_passes(libraries: dict[Fault, Path], check: Callable[[Any], None]) -> None:
    kernel = sound(SAMPLES)
    assert planted_faults.noticed(libraries[kernel], kernel, check, schemas=lambda: SCHEMAS) == ["", "", ""]


@pytest.mark.parametrize(("check", "fault", "told"), FAULTS, ids=[fault.name for _, fault, _ in FAULTS])
def test_planted_faults_are_noticed(
    libraries: dict[Fault, Path], check: Callable[[Any], None], fault: Fault, told: str
) -> None:
    for what in planted_faults.noticed(libraries[fault], fault, check, schemas=lambda: SCHEMAS):
        assert what
        assert re.search(told, what)


def test_a_fault_must_be_there_once() -> None:
    with pytest.raises(ValueError, match="times, wanted once"):
        Fault("everywhere", SAMPLES, "block_sync();", "").change((emulation.ROOT / SAMPLES).read_text())
