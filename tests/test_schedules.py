"""Schedules against hand-made tables and torch's own, free bits across processes, and the tensors a step reads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR

from svg_fast.training.schedules import (
    LRSchedule,
    Optimisation,
    Rates,
    beta_factor,
    ema_weight,
    free_kl,
    learning_rate,
    should_stop,
)

LR, LR_MIN, TOTAL = 2e-3, 5e-5, 40


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (Optimisation(), [1, 1, 1]),
        (Optimisation(beta_schedule="warmup", beta_warmup=4), [0, 0.25, 0.5, 0.75, 1, 1, 1]),
        (Optimisation(beta_schedule="warmup", beta_warmup=1), [0, 1, 1]),
        (Optimisation(beta_schedule="cyclical", beta_cycle=8), [0, 0.25, 0.5, 0.75, 1, 1, 1, 1] * 3),
        (Optimisation(beta_schedule="cyclical", beta_cycle=5), [0, 0.4, 0.8, 1, 1] * 2),
        (Optimisation(beta_schedule="cyclical", beta_cycle=2), [0, 1, 0, 1]),
    ],
)
def test_beta_follows_its_table(settings: Optimisation, wanted: list[float]) -> None:
    assert [beta_factor(settings, step) for step in range(1, len(wanted) + 1)] == pytest.approx(wanted, abs=1e-15)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], LR)


def torchs(schedule: LRSchedule, warmup: int) -> list[float]:
    """The learning rates of steps 1 .. TOTAL by torch's schedulers."""
    sgd, rest = optimizer(), TOTAL - max(warmup, 1)
    decay: LRScheduler = {
        "constant": lambda: ConstantLR(sgd, 1.0),
        "cosine": lambda: CosineAnnealingLR(sgd, rest, LR_MIN),
        "linear": lambda: LinearLR(sgd, 1.0, LR_MIN / LR, rest),
    }[schedule]()
    scheduler = decay
    if warmup > 1:
        scheduler = SequentialLR(sgd, [LinearLR(sgd, 1 / warmup, 1.0, warmup - 1), decay], [warmup - 1])
    rates = []
    for _ in range(TOTAL):
        rates.append(float(sgd.param_groups[0]["lr"]))
        sgd.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 1, 2, 10])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step:UserWarning")  # SequentialLR's own call
def test_the_learning_rate_is_torchs(schedule: LRSchedule, warmup: int) -> None:
    settings = Optimisation(LR, schedule, warmup, 0.0 if schedule == "constant" else LR_MIN)
    rates = [learning_rate(settings, step, TOTAL) for step in range(1, TOTAL + 1)]
    assert rates == pytest.approx(torchs(schedule, warmup), rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("least", [0.0, LR_MIN, LR])
def test_the_learning_rate_meets_its_ends_exactly(schedule: LRSchedule, warmup: int, least: float) -> None:
    settings = Optimisation(LR, schedule, warmup, least)
    rates = [learning_rate(settings, step, TOTAL) for step in range(1, TOTAL + 10)]
    top = max(warmup, 1) - 1
    assert rates[top] == max(rates) == LR
    assert rates[TOTAL - 1 :] == [least] * 10
    falls = [a - b for a, b in zip(rates[top:], rates[top + 1 :], strict=False)]
    # half a cosine is at most pi / 2 times as steep as the straight line
    assert all(-1e-18 <= fall <= math.pi / 2 * LR / (TOTAL - top - 1) for fall in falls)
    assert all(0 < rate < LR for rate in rates[:top])


def test_runs_shorter_than_their_warmup() -> None:
    assert learning_rate(Optimisation(LR, "cosine"), 1, 1) == LR
    assert [learning_rate(Optimisation(1.0, "linear", 4), step, 3) for step in (1, 2, 3)] == [0.25, 0.5, 0.75]


def test_weights_of_the_average() -> None:
    settings = Optimisation(ema=0.99)
    weights = [ema_weight(settings, step) for step in (1, 2, 10, 890, 891, 892, 10**6)]
    assert weights == pytest.approx([0.9, 9 / 11, 9 / 19, 9 / 899, 0.01, 0.01, 0.01], rel=1e-12)
    assert ema_weight(Optimisation(ema=0.05), 1) == pytest.approx(0.95)


CLIPS, STEPS = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 4
SHARES = [slice(0, 2), slice(2, 5)]  # two processes; their losses weigh 2/5 and 3/5


def kl_of(theta: Tensor, clips: Tensor) -> Tensor:
    """A KL of each clip and step, means over the clips (T - 1,), that depends on a parameter theta (T - 1,)."""
    return (theta * clips).square().mean(0)


@pytest.mark.parametrize("free_bits", [0.0, 0.2, 0.35, 5.0])
def test_free_bits_over_two_processes_are_those_of_one(free_bits: float) -> None:
    theta = torch.linspace(0.5, 2, STEPS, dtype=torch.float64).requires_grad_()
    kl = kl_of(theta, CLIPS)
    wanted = torch.maximum(kl, kl.new_tensor(free_bits)).sum()
    (gradient,) = torch.autograd.grad(wanted, theta)

    shares = [(len(CLIPS[share]) / len(CLIPS), kl_of(theta, CLIPS[share])) for share in SHARES]
    everywhere = sum(share * local.detach() for share, local in shares)  # what an all-reduce gives each of them
    assert isinstance(everywhere, Tensor)
    found = torch.stack([share * free_kl(local, free_bits, everywhere) for share, local in shares]).sum()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, theta)[0], gradient, rtol=1e-12, atol=0)


def test_no_free_bits_are_the_plain_sum() -> None:
    """Also where rounding left a KL below zero."""
    kl = torch.tensor([-1e-9, 0.0, 2.0], requires_grad=True)
    free = free_kl(kl, 0.0, kl.detach())
    assert torch.equal(free, kl.sum())
    assert torch.autograd.grad(free, kl)[0].tolist() == [1, 1, 1]


def test_free_bits_do_not_hide_a_kl_that_is_not_a_number() -> None:
    kl = torch.tensor([0.1, torch.nan])
    assert free_kl(kl, 0.5, kl).isnan()


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 2.0], 1, False),
        ([3.0, 3.0], 1, True),
        ([3.0, 4.0, 2.0, 2.5, 2.1], 3, False),
        ([3.0, 4.0, 2.0, 2.5, 2.1, 2.0], 3, True),
        ([3.0, 4.0, 5.0, 2.0], 2, False),  # over its patience before, which a resumed run was given more of
        ([3.0, math.nan, math.nan], 2, True),
        ([math.nan, 3.0, 2.0], 1, False),
        ([1.0, *[2.0] * 50], 0, False),
    ],
)
def test_stopping(losses: list[float], patience: int, stops: bool) -> None:
    assert should_stop(losses, patience) is stops


def adam(device: str = "cpu") -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, device=device)) for shape in ((3, 5), (131,), ())]
    return parameters, torch.optim.Adam(parameters, LR, (0.9, 0.999), fused=True)


def train(parameters: list[nn.Parameter], adam: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    adam.step()


@pytest.mark.parametrize(
    "settings",
    [Optimisation(), Optimisation(lr_schedule="cosine", lr_warmup=3), Optimisation(lr_schedule="linear", lr_min=1e-4)],
    ids=lambda settings: settings.lr_schedule,
)
def test_adam_follows_to_the_bit_what_a_python_number_would_make_it_do(settings: Optimisation) -> None:
    (by_number, plain), (by_tensor, steered) = adam(), adam()
    torchs = LambdaLR(plain, lambda done: learning_rate(settings, done + 1, TOTAL) / LR)
    rates = Rates(settings, 1.0, TOTAL, steered)
    for step in range(1, TOTAL + 1):
        plain.param_groups[0]["lr"] = learning_rate(settings, step, TOTAL)
        assert torchs.get_last_lr() == pytest.approx([plain.param_groups[0]["lr"]], rel=1e-12)
        rates.set(step)
        train(by_number, plain, step)
        train(by_tensor, steered, step)
        torchs.step()
    assert all(torch.equal(a, b) for a, b in zip(by_number, by_tensor, strict=True))


def test_rates_are_functions_of_the_step_and_stay_where_a_graph_reads_them() -> None:
    settings = Optimisation(1e-2, "linear", beta_schedule="cyclical", beta_cycle=4, ema=0.5)
    rates = Rates(settings, 1e-4, 11, adam()[1])
    tensors = rates.beta, rates.lr, rates.ema_weight
    places = [tensor.data_ptr() for tensor in tensors]
    for step, beta, lr, weight in (
        (1, 0.0, 1e-2, 0.9),
        (2, 5e-5, 9e-3, 9 / 11),
        (11, 1e-4, 0.0, 0.5),
        (1, 0.0, 1e-2, 0.9),
    ):
        rates.set(step)
        assert [float(tensor) for tensor in tensors] == pytest.approx([beta, lr, weight], rel=1e-6)
    assert [tensor.data_ptr() for tensor in (rates.beta, rates.lr, rates.ema_weight)] == places
    # in float32, as a Python number would be
    kl = torch.rand((), dtype=torch.float32)
    rates.set(11)
    assert torch.equal(rates.beta * kl, 1e-4 * kl)


def test_resumed_at_any_step_adam_goes_on_as_undisturbed() -> None:
    settings = Optimisation(lr_schedule="cosine", lr_warmup=2)
    undisturbed, steered = adam()
    rates = Rates(settings, 1.0, 8, steered)
    for step in range(1, 9):
        rates.set(step)
        train(undisturbed, steered, step)
    for stop in range(1, 8):
        parameters, first = adam()
        rates = Rates(settings, 1.0, 8, first)
        for step in range(1, stop + 1):
            rates.set(step)
            train(parameters, first, step)
        second = torch.optim.Adam(parameters, LR, fused=True)
        second.load_state_dict(first.state_dict())
        rates = Rates(settings, 1.0, 8, second)
        for step in range(stop + 1, 9):
            rates.set(step)
            train(parameters, second, step)
        assert all(torch.equal(a, b) for a, b in zip(parameters, undisturbed, strict=True))


def test_filling_and_free_bits_read_nothing_back() -> None:
    """On the meta device there is nothing to read: a CUDA graph could not have waited for it either."""
    parameters = [nn.Parameter(torch.zeros(2, device="meta"))]
    rates = Rates(Optimisation(ema=0.9), 1.0, 10, torch.optim.SGD(parameters, LR))
    rates.set(3)
    kl = parameters[0] * rates.beta
    free_kl(kl, 0.5, kl.detach()).backward()
    assert rates.lr.dtype == torch.float32  # what fused Adam reads on a GPU


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": math.nan}, "lr must be finite and not negative, got nan"),
        ({"lr_schedule": "step"}, "lr_schedule must be one of constant, cosine, linear, got 'step'"),
        ({"beta_schedule": "linear"}, "beta_schedule must be one of constant, warmup, cyclical, got 'linear'"),
        ({"lr_warmup": -1}, "lr_warmup must be finite and not negative, got -1"),
        ({"free_bits": math.inf}, "free_bits must be finite and not negative, got inf"),
        ({"grad_clip": -0.5}, "grad_clip must be finite and not negative, got -0.5"),
        ({"early_stop": -2}, "early_stop must be finite and not negative, got -2"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1, got 1.0"),
        ({"lr_schedule": "cosine", "lr_min": 0.1}, "lr_min must lie between 0 and lr = 0.002, got 0.1"),
        ({"lr_min": 1e-5}, "lr_min = 1e-05 needs lr_schedule cosine or linear, got constant"),
        ({"beta_schedule": "warmup"}, "beta_schedule warmup needs a beta_warmup of at least 1 steps, got 0"),
        (
            {"beta_schedule": "cyclical", "beta_cycle": 1},
            "beta_schedule cyclical needs a beta_cycle of at least 2 steps, got 1",
        ),
        ({"beta_cycle": 9}, "beta_cycle = 9 needs beta_schedule cyclical, got constant"),
        (
            {"beta_schedule": "cyclical", "beta_cycle": 9, "beta_warmup": 3},
            "beta_warmup = 3 needs beta_schedule warmup, got cyclical",
        ),
    ],
)
def test_wrong_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Optimisation(), **change)
