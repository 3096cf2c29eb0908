"""Diagonal Gaussians: reparameterised sample and per-time-step KL (Denton & Fergus 2018, appendix A).

T steps, B batch, Z latent dimensions; `logvar` is the natural logarithm of the variance, KL in nats.
A prior of None is the standard normal of SVG-FP.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .philox import philox4x32
from .precision import compute_dtype

_WORD = 0xFFFFFFFF


def philox_normal(shape: torch.Size, seed: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal noise keyed by (seed, offset, element).

    Element e of the row-major result is lane e % 4 of the counter (e // 4, offset). Lanes (0, 1) and (2, 3) are
    Box-Muller pairs of u = (word + 1/2) / 2**32, so |noise| stays below 6.8.
    """
    key, offset = seed.to(device).unbind(0)
    block = torch.arange((shape.numel() + 3) // 4, device=device)
    words = philox4x32(
        (block & _WORD, block >> 32, offset & _WORD, offset >> 32 & _WORD), (key & _WORD, key >> 32 & _WORD)
    )
    u = words.to(dtype) * 2.0**-32 + 2.0**-33
    radius, angle = (-2 * u[:, 0::2].log()).sqrt(), 2 * math.pi * u[:, 1::2]
    normal = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return normal.flatten()[: shape.numel()].view(shape)


def _wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the compute dtype, and contiguous as every output is."""
    return tensor.to(dtype).contiguous()


def _noise(like: Tensor, eps: Tensor | None, seed: Tensor | None) -> Tensor:
    dtype = compute_dtype(like.dtype)
    if eps is not None:
        return _wide(eps, dtype)
    assert seed is not None
    return philox_normal(like.shape, seed, dtype, like.device)


def gaussian_rsample_fwd(mu: Tensor, logvar: Tensor, eps: Tensor | None, seed: Tensor | None) -> Tensor:
    """z = mu + eps * exp(logvar / 2)."""
    dtype = compute_dtype(mu.dtype)
    return (_wide(mu, dtype) + _noise(mu, eps, seed) * (_wide(logvar, dtype) / 2).exp()).to(mu.dtype)


def _rsample_gradient(dz: Tensor, logvar: Tensor, eps: Tensor | None, seed: Tensor | None) -> Tensor:
    """dlogvar in the compute dtype of z, so that the noise drawn again is the forward's."""
    dtype = compute_dtype(dz.dtype)
    return _wide(dz, dtype) * _noise(dz, eps, seed) * (_wide(logvar, dtype) / 2).exp() / 2


def gaussian_rsample_bwd(dz: Tensor, logvar: Tensor, eps: Tensor | None, seed: Tensor | None) -> Tensor:
    """dlogvar; the gradient of mu is dz itself. The noise is drawn again, not kept."""
    return _rsample_gradient(dz, logvar, eps, seed).to(logvar.dtype)


def gaussian_kl_fwd(mu: Tensor, logvar: Tensor, mu_p: Tensor | None, logvar_p: Tensor | None) -> Tensor:
    """KL(q || p) of each time step, summed over the latent and averaged over the batch: (T, B, Z) -> (T,)."""
    dtype = compute_dtype(mu.dtype)
    m, v = mu.to(dtype), logvar.to(dtype)
    if mu_p is None or logvar_p is None:
        kl = (v.exp() + m * m - 1 - v) / 2
    else:
        m_p, v_p = mu_p.to(dtype), logvar_p.to(dtype)
        kl = (v_p - v + (v - v_p).exp() + (m - m_p) ** 2 * (-v_p).exp() - 1) / 2
    return kl.sum(dim=(1, 2)) / max(mu.shape[1], 1)


def _kl_gradients(
    dkl: Tensor, mu: Tensor, logvar: Tensor, mu_p: Tensor | None, logvar_p: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dmu, dlogvar, dmu_p, dlogvar_p in the compute dtype."""
    dtype = compute_dtype(mu.dtype)
    scale = dkl.to(dtype).view(-1, 1, 1) / max(mu.shape[1], 1)
    m, v = _wide(mu, dtype), _wide(logvar, dtype)
    if mu_p is None or logvar_p is None:
        return scale * m, scale * (v.exp() - 1) / 2, m.new_empty(0), m.new_empty(0)
    m_p, v_p = _wide(mu_p, dtype), _wide(logvar_p, dtype)
    ratio, d = (v - v_p).exp(), (m - m_p) * (-v_p).exp()
    dm = scale * d
    return dm, scale * (ratio - 1) / 2, -dm, scale * (1 - ratio - (m - m_p) * d) / 2


def gaussian_kl_bwd(
    dkl: Tensor, mu: Tensor, logvar: Tensor, mu_p: Tensor | None, logvar_p: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dmu, dlogvar, dmu_p, dlogvar_p; the last two are empty for a prior of None."""
    dm, dv, dm_p, dv_p = _kl_gradients(dkl, mu, logvar, mu_p, logvar_p)
    return dm.to(mu.dtype), dv.to(mu.dtype), dm_p.to(mu.dtype), dv_p.to(mu.dtype)


def gaussian_rsample_kl_fwd(
    mu: Tensor,
    logvar: Tensor,
    mu_p: Tensor | None,
    logvar_p: Tensor | None,
    eps: Tensor | None,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sample z (T, B, Z) from q and the KL (T,) of q from p."""
    return gaussian_rsample_fwd(mu, logvar, eps, seed), gaussian_kl_fwd(mu, logvar, mu_p, logvar_p)


def gaussian_rsample_kl_bwd(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    mu_p: Tensor | None,
    logvar_p: Tensor | None,
    eps: Tensor | None,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dmu, dlogvar, dmu_p, dlogvar_p, each sum rounded once; the last two are empty for a prior of None."""
    dm, dv, dm_p, dv_p = _kl_gradients(dkl, mu, logvar, mu_p, logvar_p)
    dm, dv = dm + dz, dv + _rsample_gradient(dz, logvar, eps, seed)
    return dm.to(mu.dtype), dv.to(mu.dtype), dm_p.to(mu.dtype), dv_p.to(mu.dtype)
