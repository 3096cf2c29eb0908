"""The Gaussian ops: samples and the KL of each time step. T steps, B batch, Z latent dimensions.

One kernel a direction, whichever of sample and KL is asked for: each input is read once and each output written once,
and the noise is drawn where it is used, forward and again backward. The KL of a step of up to 4096 elements is one
program's sum; larger steps are cut into blocks, whose sums `torch.sum` adds up in a fixed order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.precision import compute_dtype
from .launch import check, check_device, check_rank, check_shape, check_tensor, precision, tuned
from .maths import exponential, load, store
from .philox import normal_noise

# Blocks begin on multiples of so many elements: whole counters of the generator, and whole 128-bit words of float16.
ALIGNMENT = tl.constexpr(16)
_ONE_BLOCK, _MANY_BLOCKS = 4096, 1024
_MOST_IN_STEP = 2**30  # kernels count them in 32 bits

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _block(units, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """Of this program: its step, the first of its elements, all of them, and which are the step's.

    A step of units * UNIT elements begins anywhere, its first block at or before it. UNIT divides every bound, which
    tells the compiler how wide a masked load may be.
    """
    size = units * UNIT
    blocks = tl.cdiv(size + ALIGNMENT - UNIT, BLOCK)
    step = (tl.program_id(0) // blocks).to(tl.int64)
    begin = step * size
    first = begin // ALIGNMENT * ALIGNMENT + tl.program_id(0) % blocks * BLOCK
    element = first + tl.arange(0, BLOCK)
    return step, first, element, (element >= begin) & (element < begin + size)


@triton.jit
def _noise(eps, seed, first, element, mask, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    return load(eps + element, mask, COMPUTE) if eps is not None else normal_noise(seed, first, BLOCK, COMPUTE)


@triton.jit
def forward_kernel(
    mu, logvar, mu_p, logvar_p, eps, seed, z, kl, units, batch,
    UNIT: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """z, and of each block the sum of its KL over the batch; either may be None."""
    _, first, element, mask = _block(units, UNIT, BLOCK)
    m, v = load(mu + element, mask, COMPUTE), load(logvar + element, mask, COMPUTE)
    if z is not None:
        noise = _noise(eps, seed, first, element, mask, BLOCK, COMPUTE)
        store(z + element, m + noise * exponential(v / 2), mask)
    if kl is not None:
        if mu_p is not None:
            v_p = load(logvar_p + element, mask, COMPUTE)
            distance = m - load(mu_p + element, mask, COMPUTE)
            twice = v_p - v + exponential(v - v_p) + distance * distance * exponential(-v_p) - 1
        else:
            twice = exponential(v) + m * m - 1 - v
        tl.store(kl + tl.program_id(0), tl.sum(tl.where(mask, twice, 0.0)) / (2 * batch))


@tuned(
    triton.Config({"BLOCK": 1024}, num_warps=4),
    triton.Config({"BLOCK": 512}, num_warps=4),
    triton.Config({"BLOCK": 512}, num_warps=2),
    triton.Config({"BLOCK": 2048}, num_warps=8),
    key=["units", "UNIT"],
)
@triton.jit
def backward_kernel(
    dz, dkl, mu, logvar, mu_p, logvar_p, eps, seed, dmu, dlogvar, dmu_p, dlogvar_p, units, batch,
    UNIT: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What dz and dkl, either of which may be None, lead to: the gradient of a sample's mu is dz itself."""
    step, first, element, mask = _block(units, UNIT, BLOCK)
    v = load(logvar + element, mask, COMPUTE)
    dv = tl.zeros_like(v)
    if dkl is not None:
        scale = load(dkl + step, True, COMPUTE) / batch
        m = load(mu + element, mask, COMPUTE)
        if mu_p is not None:
            v_p = load(logvar_p + element, mask, COMPUTE)
            distance, ratio = m - load(mu_p + element, mask, COMPUTE), exponential(v - v_p)
            scaled = distance * exponential(-v_p)
            dm, dv = scale * scaled, scale * (ratio - 1) / 2
            store(dmu_p + element, -dm, mask)
            store(dlogvar_p + element, scale * (1 - ratio - distance * scaled) / 2, mask)
        else:
            dm, dv = scale * m, scale * (exponential(v) - 1) / 2
    if dz is not None:
        d = load(dz + element, mask, COMPUTE)
        dv += d * _noise(eps, seed, first, element, mask, BLOCK, COMPUTE) * exponential(v / 2) / 2
        if dkl is not None:
            dm += d
    if dkl is not None:
        store(dmu + element, dm, mask)
    store(dlogvar + element, dv, mask)


class _Steps:
    """The elements of `like` as T steps where each has a KL, else as one."""

    def __init__(self, like: Tensor, kl: bool) -> None:
        if kl:
            check_rank("mu", like, 3)
        self.count = like.shape[0] if kl else 1
        self.batch = max(like.shape[1], 1) if kl else 1
        self.size = like.numel() // max(self.count, 1)
        check(self.size < _MOST_IN_STEP, f"a step must have less than 2**30 elements, got {self.size}")
        self.unit = math.gcd(self.size, ALIGNMENT.value)
        self.units = self.size // self.unit

    def blocks(self, block: int) -> int:
        return triton.cdiv(self.size + ALIGNMENT.value - self.unit, block)


def _dense(given: dict[str, Tensor | None], like: Tensor) -> list[Tensor | None]:
    """Checked, and in row-major order: where the noise's elements, and those of every output, are counted."""
    for name, tensor in given.items():
        if tensor is not None:
            check_tensor(name, tensor, like.shape, like.device)
    check((given["mu_p"] is None) == (given["logvar_p"] is None), "mu_p and logvar_p must both be given")
    return [None if tensor is None else tensor.contiguous() for tensor in given.values()]


def _seed_of(eps: Tensor | None, seed: Tensor | None, like: Tensor) -> Tensor | None:
    """On the device; one that was drawn on the CPU is sent there, and nothing waits for it."""
    if eps is not None:
        return None
    if seed is None:
        raise RuntimeError("eps or seed must be given")
    check_shape("seed", seed, (2,))
    check(seed.dtype == torch.int64, f"seed must be torch.int64, got {seed.dtype}")
    seed = seed.to(like.device, non_blocking=True) if seed.device.type == "cpu" else seed
    check_device("seed", seed, like.device)
    return seed.contiguous()


def _forward(
    mu: Tensor,
    logvar: Tensor,
    mu_p: Tensor | None,
    logvar_p: Tensor | None,
    noise: tuple[Tensor | None, Tensor | None] | None,
    kl: bool,
) -> tuple[Tensor, Tensor]:
    """z, where there is noise (eps, seed), and kl, where it is asked for; empty where not."""
    steps = _Steps(mu, kl)
    eps, seed = noise or (None, None)
    seed = _seed_of(eps, seed, mu) if noise else None
    given = {"mu": mu, "logvar": logvar, "mu_p": mu_p, "logvar_p": logvar_p, "eps": eps}
    inputs = _dense(given, mu)
    one_block = steps.blocks(_ONE_BLOCK) <= 1
    block = max(128, triton.next_power_of_2(steps.size + ALIGNMENT.value - steps.unit)) if one_block else _MANY_BLOCKS
    blocks = steps.blocks(block)
    z = mu.new_empty(mu.shape) if noise else None
    sums = mu.new_empty((steps.count, blocks), dtype=compute_dtype(mu.dtype)) if kl else None
    if mu.numel():
        forward_kernel[(steps.count * blocks,)](
            *inputs, seed, z, sums, steps.units, steps.batch,
            UNIT=steps.unit, BLOCK=block, COMPUTE=precision(mu), num_warps=max(1, min(8, block // 256)),
        )  # fmt: skip
    elif sums is not None:
        sums.zero_()
    nothing = mu.new_empty(0)
    total = nothing if sums is None else sums.view(-1) if blocks == 1 else sums.sum(1)
    return nothing if z is None else z, total


def _backward(
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    mu_p: Tensor | None,
    logvar_p: Tensor | None,
    noise: tuple[Tensor | None, Tensor | None] | None,
    like: Tensor,
) -> Gradients:
    """dmu, dlogvar, dmu_p, dlogvar_p in logvar's shape and the dtype of `mu`, or else of `logvar`; empty where not
    asked for. `like` has the dtype of the forward's results, which decides the precision."""
    steps = _Steps(like, dkl is not None)
    eps, seed = noise or (None, None)
    seed = _seed_of(eps, seed, like) if noise else None
    if dkl is not None:
        check_tensor("dkl", dkl, (steps.count,), like.device)
        dkl = dkl.contiguous()
    dz, *inputs = _dense(
        {"dz": dz, "mu": mu, "logvar": logvar, "mu_p": mu_p, "logvar_p": logvar_p, "eps": eps},
        like if mu is not None else logvar,
    )
    wanted = mu if mu is not None else logvar
    gradients = [
        wanted.new_empty(wanted.shape if asked else (0,))
        for asked in (dkl is not None, True, mu_p is not None, mu_p is not None)
    ]
    if like.numel():
        backward_kernel[lambda meta: (steps.count * steps.blocks(meta["BLOCK"]),)](
            dz, dkl, *inputs, seed, *gradients, steps.units, steps.batch, UNIT=steps.unit, COMPUTE=precision(like)
        )
    dmu, dlogvar, dmu_p, dlogvar_p = gradients
    return dmu, dlogvar, dmu_p, dlogvar_p


def gaussian_rsample_fwd(mu: Tensor, logvar: Tensor, eps: Tensor | None, seed: Tensor | None) -> Tensor:
    return _forward(mu, logvar, None, None, (eps, seed), kl=False)[0]


def gaussian_rsample_bwd(dz: Tensor, logvar: Tensor, eps: Tensor | None, seed: Tensor | None) -> Tensor:
    return _backward(dz, None, None, logvar, None, None, (eps, seed), dz)[1]


def gaussian_kl_fwd(mu: Tensor, logvar: Tensor, mu_p: Tensor | None, logvar_p: Tensor | None) -> Tensor:
    return _forward(mu, logvar, mu_p, logvar_p, None, kl=True)[1]


def gaussian_kl_bwd(dkl: Tensor, mu: Tensor, logvar: Tensor, mu_p: Tensor | None, logvar_p: Tensor | None) -> Gradients:
    return _backward(None, dkl, mu, logvar, mu_p, logvar_p, None, mu)


def gaussian_rsample_kl_fwd(
    mu: Tensor,
    logvar: Tensor,
    mu_p: Tensor | None,
    logvar_p: Tensor | None,
    eps: Tensor | None,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _forward(mu, logvar, mu_p, logvar_p, (eps, seed), kl=True)


def gaussian_rsample_kl_bwd(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    mu_p: Tensor | None,
    logvar_p: Tensor | None,
    eps: Tensor | None,
    seed: Tensor | None,
) -> Gradients:
    return _backward(dz, dkl, mu, logvar, mu_p, logvar_p, (eps, seed), mu)
