"""Gaussian ops, forward and backward, against the published code step by step, one batched call, and that compiled.

T steps, B batch, Z latent dimensions. Everyone draws its own noise in the timed call, and is checked with known noise
before: peers are given what our seed stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

import op_oracles
import pytest
import torch
from calls import Forward, assert_right, leaf, training, wide
from measure import Race, Run, traffic
from test_ops import FLOAT32, FLOAT32_SEEDED, Op, call, cotangents, evaluate, map_floating
from torch import Tensor

from svg_fast import backend, ops
from svg_fast.testing import Draw, select

SIZES = [(15, 100, 10), (30, 16, 64), (30, 1024, 128)]
SEED = 3


def noise(shape: Sequence[int]) -> Tensor:
    """What SEED stands for, in float64: the sample of a standard normal by the reference, which has its own tests."""
    zeros = torch.zeros(*shape, dtype=torch.float64)
    with backend.use_backend("reference"):
        return ops.gaussian_rsample(zeros, zeros, seed=SEED)


def sample(mu: Tensor, logvar: Tensor, eps: Tensor | None) -> Tensor:
    """As published, up to names."""
    sigma = logvar.mul(0.5).exp_()
    eps = torch.empty_like(sigma).normal_() if eps is None else eps
    return eps.mul(sigma).add_(mu)


def divergence(mu: Tensor, logvar: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL of every element, as published up to names."""
    sigma, sigma_p = logvar.mul(0.5).exp(), logvar_p.mul(0.5).exp()
    return torch.log(sigma_p / sigma) + (torch.exp(logvar) + (mu - mu_p) ** 2) / (2 * torch.exp(logvar_p)) - 1 / 2


def batched(
    mu: Tensor, logvar: Tensor, mu_p: Tensor, logvar_p: Tensor, eps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(T, B, Z) -> z (T, B, Z), kl (T,)."""
    return sample(mu, logvar, eps), divergence(mu, logvar, mu_p, logvar_p).sum((1, 2)) / mu.shape[1]


def per_step(steps: Sequence[Sequence[Tensor]], eps: Sequence[Tensor | None]) -> list[Tensor]:
    """Parameters of each step, (B, Z) -> all z, then all kl."""
    z = [sample(mu, logvar, eps_t) for (mu, logvar, _, _), eps_t in zip(steps, eps, strict=True)]
    return z + [divergence(*parameters).sum() / len(parameters[0]) for parameters in steps]


@pytest.mark.benchmark(group="gaussian_rsample_kl")
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_gaussian_rsample_kl(race: Race, shape: tuple[int, int, int]) -> None:
    draw = Draw(race.dtype, race.device)
    inputs = {name: draw(*shape, std=std) for name, std in (("mu", 1), ("logvar", 0.7), ("mu_p", 1), ("logvar_p", 0.7))}
    dz, dkl = draw(*shape), draw(shape[0])
    mu, logvar, mu_p, logvar_p = leaves = [leaf(tensor) for tensor in inputs.values()]
    steps = [[leaf(tensor[t]) for tensor in inputs.values()] for t in range(shape[0])]
    step_leaves = [parameter for column in zip(*steps, strict=True) for parameter in column]
    eps = noise(shape)
    own_eps = eps.to(race.device, race.dtype)

    def calls(forward: Forward, checked: Forward) -> tuple[Run, Run]:
        return training(forward, leaves, [dz, dkl]), training(checked, leaves, [dz, dkl])

    seed = torch.tensor((SEED, 0), device=race.device)  # there, for a CUDA graph: each call draws at the next offset

    def sample_anew() -> Sequence[Tensor]:
        seed[1:].add_(1)
        return ops.gaussian_rsample_kl(*leaves, seed=seed)

    ours, ours_checked = calls(sample_anew, lambda: ops.gaussian_rsample_kl(*leaves, seed=SEED))
    pairs = {
        "eager, per step": (
            training(lambda: per_step(steps, [None] * len(steps)), step_leaves, [*dz, *dkl]),
            training(lambda: per_step(steps, list(own_eps)), step_leaves, [*dz, *dkl]),
        ),
        "eager, batched": calls(
            lambda: batched(mu, logvar, mu_p, logvar_p), lambda: batched(mu, logvar, mu_p, logvar_p, own_eps)
        ),
    }
    if compiled := race.compile(batched):
        pairs["torch.compile"] = calls(lambda: compiled(*leaves), lambda: compiled(*leaves, own_eps))

    def check() -> None:
        want = evaluate(
            lambda **given: op_oracles.gaussian_rsample_kl(**given, eps=eps),
            {name: wide(tensor) for name, tensor in inputs.items()},
            lambda _: [wide(dz), wide(dkl)],
        )
        bound = race.tolerance(FLOAT32_SEEDED)
        assert_right(ours_checked, [checked for _, checked in pairs.values()], want, bound)

    # forward: mu, logvar, mu_p, logvar_p to z; backward: dz and the same four to their gradients
    work = traffic((5 + 9) * eps.numel())
    peers = {name: timed for name, (timed, _) in pairs.items()}
    race(ours, peers, check=check, ops=["gaussian_rsample_kl"], work=work)


EAGER: dict[str, Op] = {
    "gaussian_rsample": lambda mu, logvar, eps: (sample(mu, logvar, eps),),
    "gaussian_kl": lambda *parameters: (divergence(*parameters).sum((1, 2)) / len(parameters[0][0]),),
}
# sample: mu, logvar, eps to z, then dz, logvar, eps to dlogvar; KL: its four inputs, then those to their gradients
TENSORS = {"gaussian_rsample": 4 + 4, "gaussian_kl": 4 + 8}


@pytest.mark.benchmark(group="gaussian_rsample, gaussian_kl")
@pytest.mark.parametrize("op", EAGER)
def test_one_of_the_two(race: Race, op: str) -> None:
    """Each by itself, with the noise given."""
    case = select(op, "large")[0]

    def timed(function: Op) -> Run:
        given = case.inputs(race.dtype, race.device)
        inputs = [tensor.requires_grad_(name != "eps") for name, tensor in given.items()]
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        return training(lambda: function(*inputs), leaves, cotangents(list(function(*inputs))))

    names = list(case.inputs())
    ours = timed(lambda *inputs: call(op)(**dict(zip(names, inputs, strict=True))))
    peers = {"eager, batched": timed(EAGER[op])}

    def check() -> None:
        want = evaluate(getattr(op_oracles, op), map_floating(case.inputs(race.dtype), wide))
        assert_right(ours, peers.values(), want, race.tolerance(FLOAT32))

    work = traffic(TENSORS[op] * case.inputs()["mu"].numel())
    race(ours, peers, check=check, ops=[op], work=work)
