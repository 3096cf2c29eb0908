"""The noise of the Gaussian ops: the published generator, the documented mapping, and a standard normal."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from op_oracles import Words, noise, philox_words
from scipy import stats
from torch import Tensor

from svg_fast import ops
from svg_fast.reference.philox import philox4x32

ONES = 0xFFFFFFFF
# Salmon et al. (2011), Random123, kat_vectors, philox4x32 10: counter, key, words.
KNOWN: list[tuple[Words, tuple[int, int], Words]] = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
DRAWS = 1_000_000


def draw(*shape: int, seed: int | Tensor = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    zeros = torch.zeros(shape, dtype=dtype)
    return ops.gaussian_rsample(zeros, zeros, seed=seed)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter: Words, key: tuple[int, int], words: Words) -> None:
    assert tuple(philox4x32(counter, key).tolist()) == words
    assert philox_words(counter, key) == words  # the oracle as well


@pytest.mark.parametrize(
    ("seed", "offset"),
    [(0, 0), (1, 0), (0, 1), (2**63 - 1, 0), (2**40 + 5, 2**33 + 7), (2**63 - 1, 2**63 - 1), (-1, -1), (-(2**63), -7)],
)
def test_noise_is_the_documented_mapping(seed: int, offset: int) -> None:
    got = draw(3, 5, 7, seed=torch.tensor([seed, offset]), dtype=torch.float64)
    torch.testing.assert_close(got, noise(torch.Size((3, 5, 7)), seed, offset), rtol=1e-12, atol=1e-14)


def test_the_op_draws_the_published_words() -> None:
    """The Box-Muller transform turned round: float64 noise tells the 32 bits of its words."""
    words: list[int] = []
    for x, y in draw(4, seed=0, dtype=torch.float64).view(2, 2).tolist():
        u = math.exp(-(x * x + y * y) / 2), math.atan2(y, x) / (2 * math.pi) % 1
        words += [round(2**32 * value - 0.5) for value in u]
    assert tuple(words) == KNOWN[0][2]


def test_float64_noise_is_accurate_to_a_few_ulp() -> None:
    """Of its radius: logarithm, square root, sine and cosine leave no more."""
    got, want = draw(20_000, seed=5, dtype=torch.float64).view(-1, 2), noise(torch.Size((20_000,)), 5).view(-1, 2)
    error = (got - want).abs() / want.norm(dim=1, keepdim=True)
    assert error.max() < 4 * torch.finfo(torch.float64).eps


@pytest.fixture
def threads() -> Iterator[list[int]]:
    before = torch.get_num_threads()
    yield [1, 2, 3]
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_does_not_depend_on_the_number_of_threads(threads: list[int], dtype: torch.dtype) -> None:
    drawn = []
    for count in threads:
        torch.set_num_threads(count)
        drawn.append(draw(7, 5, 1153, seed=4, dtype=dtype))
    assert all(torch.equal(other, drawn[0]) for other in drawn[1:])


@pytest.mark.parametrize("size", [1, 3, 5, 6, 17, 63, 65, 1023, 1025, 2050])
def test_noise_of_a_time_step_goes_on_where_the_one_before_ended(size: int) -> None:
    """Steps that begin within a counter, and end within a vector."""
    zeros = torch.zeros(5, 1, size)
    z, _ = ops.gaussian_rsample_kl(zeros, zeros, seed=4)
    assert torch.equal(z.flatten(), draw(5 * size, seed=4))


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_an_int_seed_is_that_seed_at_offset_zero(seed: int) -> None:
    assert torch.equal(draw(101, seed=seed), draw(101, seed=torch.tensor([seed, 0])))


def test_noise_depends_on_the_element_not_on_the_shape() -> None:
    flat = draw(3 * 5 * 7, seed=4)
    assert torch.equal(draw(3, 5, 7, seed=4).flatten(), flat)
    assert torch.equal(draw(10, seed=4), flat[:10])


def test_seed_and_offset_change_the_noise() -> None:
    seeds = [[0, 0], [1, 0], [0, 1], [2**32, 0], [0, 2**32]]
    rows = torch.stack([draw(DRAWS // 10, seed=torch.tensor(seed)) for seed in seeds])
    correlation = torch.corrcoef(rows) - torch.eye(len(seeds))
    assert correlation.abs().max() < 5 * (DRAWS // 10) ** -0.5  # five standard deviations


def test_a_seed_is_drawn_from_the_default_generator() -> None:
    zeros = torch.zeros(10)
    torch.manual_seed(0)
    first, second = ops.gaussian_rsample(zeros, zeros), ops.gaussian_rsample(zeros, zeros)
    torch.manual_seed(0)
    assert torch.equal(ops.gaussian_rsample(zeros, zeros), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_is_standard_normal(dtype: torch.dtype) -> None:
    """Kolmogorov-Smirnov, four moments within five standard errors, and as many beyond 4 sigma as there should be."""
    x = draw(DRAWS, seed=1, dtype=dtype).double().numpy()
    assert stats.kstest(x, "norm").pvalue > 0.01
    for k, (moment, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((x**k).mean() - moment) < 5 * (variance / DRAWS) ** 0.5
    expected = 2 * stats.norm.sf(4) * DRAWS
    assert abs((abs(x) > 4).sum() - expected) < 5 * expected**0.5
    assert 4.5 < abs(x).max() < 6.8


def test_lanes_are_independent() -> None:
    """The four lanes of a counter and the next counter's; the squares too, since a pair shares its radius."""
    lanes = draw(DRAWS, seed=2, dtype=torch.float64).view(-1, 4)
    rows = torch.cat((lanes[:-1], lanes[1:]), dim=1).t()
    for values in (rows, rows.square()):
        correlation = torch.corrcoef(values) - torch.eye(8, dtype=torch.float64)
        assert correlation.abs().max() < 5 * (DRAWS / 4) ** -0.5
    for lane in lanes.t():
        assert stats.kstest(lane.numpy(), "norm").pvalue > 0.001


def test_float32_noise_is_that_of_float64() -> None:
    """To 1e-5; where u is within 2^-18 of one, and the noise small, float32 cannot tell radii apart as finely."""
    narrow, wide = draw(DRAWS, seed=3), draw(DRAWS, seed=3, dtype=torch.float64)
    error = (narrow - wide).abs()
    assert error[wide.abs() > 3e-3].max() < 1e-5
    assert error.max() < 3e-4
    assert narrow.isfinite().all()


def test_bfloat16_noise_is_that_of_float32_rounded() -> None:
    assert torch.equal(draw(1000, seed=3, dtype=torch.bfloat16), draw(1000, seed=3).bfloat16())
