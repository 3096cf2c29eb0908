"""Reparameterised Gaussian sampling and the KL divergence of each time step, alone and in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import gaussian as reference
from ..reference.precision import compute_dtype
from ._checks import check_dense, check_floating, check_like, check_rank, check_shape
from ._declare import declare, differentiate

_SEED_LIMIT = 2**63


def gaussian_rsample(
    mu: Tensor, logvar: Tensor, *, seed: int | Tensor | None = None, eps: Tensor | None = None
) -> Tensor:
    """Reparameterised sample z = mu + eps * exp(logvar / 2) of a diagonal Gaussian.

    mu, logvar (any one shape) -> z of that shape and dtype; logvar is the log of the variance.

    The noise is Philox4x32-10 keyed by (seed, offset, element): the same on every device, and drawn again in the
    backward pass instead of kept. `seed` is an int or an int64 tensor (2,) holding (seed, offset), which may live on
    the device; `eps`, of mu's shape, takes its place. With neither, a seed is drawn from torch's default generator.

    Raises ValueError on a shape or device that does not fit, or where both seed and eps are given.
    """
    _check_posterior(mu, logvar)
    eps, seed = check_noise(mu, mu.shape, seed, eps)
    z: Tensor = _rsample(mu, logvar, eps, seed)
    return z


def gaussian_kl(mu: Tensor, logvar: Tensor, mu_p: Tensor | None = None, logvar_p: Tensor | None = None) -> Tensor:
    """KL( N(mu, exp logvar) || N(mu_p, exp logvar_p) ) of each time step, in nats per sequence.

    T steps, B batch, Z latent dimensions. The terms of the variational bound (appendix A): summed over the latent,
    averaged over the batch. A prior of None, None is the standard normal.

    mu, logvar, mu_p, logvar_p (T, B, Z) -> kl (T,), in float32 or wider.

    Raises ValueError on a shape or device that does not fit, or where only half of a prior is given.
    """
    check_rank("mu", mu, "T, B, Z")
    _check_posterior(mu, logvar)
    _check_prior(mu, mu_p, logvar_p)
    kl: Tensor = _kl(mu, logvar, mu_p, logvar_p)
    return kl


def gaussian_rsample_kl(
    mu: Tensor,
    logvar: Tensor,
    mu_p: Tensor | None = None,
    logvar_p: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    eps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`gaussian_rsample` and `gaussian_kl` in one pass over the posterior's parameters.

    mu, logvar, mu_p, logvar_p (T, B, Z) -> z (T, B, Z), kl (T,) in nats per sequence. Noise, prior and errors are
    those of the two functions.
    """
    check_rank("mu", mu, "T, B, Z")
    _check_posterior(mu, logvar)
    _check_prior(mu, mu_p, logvar_p)
    eps, seed = check_noise(mu, mu.shape, seed, eps)
    z, kl = _rsample_kl(mu, logvar, mu_p, logvar_p, eps, seed)
    return z, kl


def _check_posterior(mu: Tensor, logvar: Tensor) -> None:
    check_floating("mu", mu)
    check_like("logvar", logvar, mu)
    check_shape("logvar", logvar, mu.shape)


def _check_prior(mu: Tensor, mu_p: Tensor | None, logvar_p: Tensor | None) -> None:
    if (mu_p is None) != (logvar_p is None):
        raise ValueError("give both mu_p and logvar_p for a learned prior, or neither for the standard normal")
    for name, tensor in (("mu_p", mu_p), ("logvar_p", logvar_p)):
        if tensor is not None:
            check_like(name, tensor, mu)
            check_shape(name, tensor, mu.shape)


def check_noise(
    like: Tensor, shape: Sequence[int], seed: int | Tensor | None, eps: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Exactly one of (eps, seed) comes back, the seed as a tensor; eps is of that shape, on the device of `like`."""
    if eps is not None:
        if seed is not None:
            raise ValueError("give seed or eps, not both: eps takes the place of the noise that seed would draw")
        check_like("eps", eps, like)
        check_shape("eps", eps, shape)
        if eps.requires_grad:
            raise ValueError("eps must be noise without a gradient, got a tensor that requires one")
        return eps, None
    if seed is None:
        seed = torch.randint(_SEED_LIMIT - 1, (2,))
    if isinstance(seed, Tensor):
        check_dense("seed", seed)
        check_shape("seed", seed, (2,))
        if seed.dtype != torch.int64:
            raise TypeError(f"seed must be an int64 tensor of (seed, offset), got {seed.dtype}")
        return None, seed
    if not isinstance(seed, int):
        raise TypeError(f"seed must be an int or an int64 tensor of (seed, offset), got {type(seed).__name__}")
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    return None, torch.tensor([seed, 0], dtype=torch.int64)  # on the CPU: to send it is the op's, which does not wait


def _kl_fake(mu: Tensor, *_: Tensor | None) -> Tensor:
    return mu.new_empty(mu.shape[0], dtype=compute_dtype(mu.dtype))


def _kl_bwd_fake(mu: Tensor, mu_p: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (mu.shape, mu.shape, *((0,) if mu_p is None else mu.shape for _ in range(2)))
    dmu, dlogvar, dmu_p, dlogvar_p = (mu.new_empty(shape) for shape in shapes)
    return dmu, dlogvar, dmu_p, dlogvar_p


def _rsample_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _rsample_backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return dz, _rsample_bwd(dz, *ctx.saved_tensors), None, None


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _where_given(mu_p: Tensor | None, gradients: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor | None, ...]:
    """The op returns empty gradients for the prior that is not there; autograd wants None."""
    return gradients if mu_p is not None else (*gradients[:2], None, None)


def _kl_backward(ctx: Any, dkl: Tensor) -> tuple[Tensor | None, ...]:
    mu, logvar, mu_p, logvar_p = ctx.saved_tensors
    return _where_given(mu_p, _kl_bwd(dkl, mu, logvar, mu_p, logvar_p))


def _rsample_kl_backward(ctx: Any, dz: Tensor, dkl: Tensor) -> tuple[Tensor | None, ...]:
    mu, logvar, mu_p, logvar_p, eps, seed = ctx.saved_tensors
    gradients = _rsample_kl_bwd(dz, dkl, mu, logvar, mu_p, logvar_p, eps, seed)
    return *_where_given(mu_p, gradients), None, None


declare(
    "gaussian_rsample_fwd(Tensor mu, Tensor logvar, Tensor? eps, Tensor? seed) -> Tensor z",
    reference=reference.gaussian_rsample_fwd,
    fake=lambda mu, logvar, eps, seed: mu.new_empty(mu.shape),
)
_rsample_bwd = declare(
    "gaussian_rsample_bwd(Tensor dz, Tensor logvar, Tensor? eps, Tensor? seed) -> Tensor dlogvar",
    reference=reference.gaussian_rsample_bwd,
    fake=lambda dz, logvar, eps, seed: logvar.new_empty(logvar.shape),
)
declare(
    "gaussian_kl_fwd(Tensor mu, Tensor logvar, Tensor? mu_p, Tensor? logvar_p) -> Tensor kl",
    reference=reference.gaussian_kl_fwd,
    fake=_kl_fake,
)
_kl_bwd = declare(
    "gaussian_kl_bwd(Tensor dkl, Tensor mu, Tensor logvar, Tensor? mu_p, Tensor? logvar_p)"
    " -> (Tensor dmu, Tensor dlogvar, Tensor dmu_p, Tensor dlogvar_p)",
    reference=reference.gaussian_kl_bwd,
    fake=lambda dkl, mu, logvar, mu_p, logvar_p: _kl_bwd_fake(mu, mu_p),
)
declare(
    "gaussian_rsample_kl_fwd(Tensor mu, Tensor logvar, Tensor? mu_p, Tensor? logvar_p, Tensor? eps, Tensor? seed)"
    " -> (Tensor z, Tensor kl)",
    reference=reference.gaussian_rsample_kl_fwd,
    fake=lambda mu, *_: (mu.new_empty(mu.shape), _kl_fake(mu)),
)
_rsample_kl_bwd = declare(
    "gaussian_rsample_kl_bwd(Tensor dz, Tensor dkl, Tensor mu, Tensor logvar, Tensor? mu_p, Tensor? logvar_p,"
    " Tensor? eps, Tensor? seed) -> (Tensor dmu, Tensor dlogvar, Tensor dmu_p, Tensor dlogvar_p)",
    reference=reference.gaussian_rsample_kl_bwd,
    fake=lambda dz, dkl, mu, logvar, mu_p, *_: _kl_bwd_fake(mu, mu_p),
)
_rsample = differentiate("gaussian_rsample_fwd", _rsample_backward, _rsample_setup)
_kl = differentiate("gaussian_kl_fwd", _kl_backward, _save_inputs)
_rsample_kl = differentiate("gaussian_rsample_kl_fwd", _rsample_kl_backward, _save_inputs)
