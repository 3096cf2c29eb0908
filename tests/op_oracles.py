"""What each op must compute, from stock torch.nn, torch.distributions and numpy alone; autograd gives the gradients.

Every oracle takes the op's own arguments by name and returns the op's outputs as a tuple.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

Words = tuple[int, int, int, int]


def philox_words(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 in plain Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (product1 >> 32) ^ c1 ^ k0, product1 & 0xFFFFFFFF
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def noise_element(element: int, seed: int, offset: int = 0) -> float:
    """The documented mapping: lane e % 4 of counter e // 4, lanes (0, 1) and (2, 3) Box-Muller pairs."""
    block, lane = divmod(element, 4)
    split = [word >> shift & 0xFFFFFFFF for word in (block, offset, seed) for shift in (0, 32)]
    words = philox_words((split[0], split[1], split[2], split[3]), (split[4], split[5]))
    u1, u2 = ((word + 0.5) / 2**32 for word in words[lane // 2 * 2 : lane // 2 * 2 + 2])
    turn = np.cos if lane % 2 == 0 else np.sin
    return float(np.sqrt(-2 * np.log(u1)) * turn(2 * np.pi * u2))


@functools.cache
def noise(shape: torch.Size, seed: int, offset: int = 0) -> Tensor:
    elements = [noise_element(element, seed, offset) for element in range(shape.numel())]
    return torch.tensor(elements, dtype=torch.float64).view(shape)


def cell_step(x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Any:
    cell = nn.LSTMCell(w_ih.shape[1], w_hh.shape[1], dtype=x.dtype)
    return functional_call(cell, {"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh}, (x, (h, c)))


def lstm_layer(gates_x: Tensor, h0: Tensor, c0: Tensor, w_hh: Tensor) -> tuple[Tensor, ...]:
    """The identity as input projection makes the gates' inputs the layer's input."""
    identity, zeros = torch.eye(len(w_hh), dtype=w_hh.dtype), w_hh.new_zeros(len(w_hh))
    if not gates_x.numel():
        return gates_x[..., : w_hh.shape[1]], gates_x[..., : w_hh.shape[1]]
    parameters = {"weight_ih_l0": identity, "weight_hh_l0": w_hh, "bias_ih_l0": zeros, "bias_hh_l0": zeros}
    layer = nn.LSTM(*w_hh.shape, dtype=w_hh.dtype)
    y, _ = functional_call(layer, parameters, (gates_x, (h0.unsqueeze(0), c0.unsqueeze(0))))
    states = [(h0, c0)]
    for gates in gates_x:
        states.append(cell_step(gates, *states[-1], identity, w_hh, zeros, zeros))
    return y, torch.stack([c for _, c in states[1:]])


def lstm_step(x: Tensor, h: Tensor, c: Tensor, **weights: list[Tensor]) -> tuple[Tensor, ...]:
    states = []
    for k in range(len(h)):
        states.append(cell_step(x, h[k], c[k], *(weights[name][k] for name in ("w_ih", "w_hh", "b_ih", "b_hh"))))
        x = states[-1][0]
    return tuple(torch.stack(column) for column in zip(*states, strict=True))


@torch.no_grad()
def lstm_net_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_embed: Tensor,
    b_embed: Tensor,
    w_head: list[Tensor],
    b_head: list[Tensor],
    eps: Tensor | None = None,
    seed: int | None = None,
    **cells: list[Tensor],
) -> tuple[Tensor, ...]:
    def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return functional_call(nn.Linear(w.shape[1], w.shape[0], dtype=w.dtype), {"weight": w, "bias": b}, (x,))

    h, c = lstm_step(linear(x, w_embed, b_embed), h, c, **cells)
    outputs = [linear(h[-1], w, b) for w, b in zip(w_head, b_head, strict=True)]
    if len(outputs) == 1:
        return h, c, outputs[0].tanh()
    sample = gaussian_rsample(*outputs, eps=eps, seed=seed) if eps is not None or seed is not None else ()
    return h, c, *outputs, *sample


def gaussian_rsample(
    mu: Tensor, logvar: Tensor, *, eps: Tensor | None = None, seed: int | None = None
) -> tuple[Tensor, ...]:
    if eps is None:
        assert seed is not None
        eps = noise(mu.shape, seed)
    return (mu + eps * Normal(mu, logvar.exp().sqrt()).stddev,)


def gaussian_kl(
    mu: Tensor, logvar: Tensor, mu_p: Tensor | None = None, logvar_p: Tensor | None = None
) -> tuple[Tensor, ...]:
    m_p = torch.zeros_like(mu) if mu_p is None else mu_p
    v_p = torch.zeros_like(mu) if logvar_p is None else logvar_p
    kl = kl_divergence(Normal(mu, logvar.exp().sqrt()), Normal(m_p, v_p.exp().sqrt()))
    return (kl.sum((1, 2)) / max(mu.shape[1], 1),)


def gaussian_rsample_kl(
    mu: Tensor, logvar: Tensor, mu_p: Tensor | None = None, logvar_p: Tensor | None = None, **drawn: Any
) -> tuple[Tensor, ...]:
    return *gaussian_rsample(mu, logvar, **drawn), *gaussian_kl(mu, logvar, mu_p, logvar_p)


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    steps: int,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    eps: float = 1e-5,
) -> tuple[Tensor, ...]:
    if not x.numel():
        return x.clone(), x.new_zeros(steps, x.shape[1]), x.new_zeros(steps, x.shape[1])
    act = {"leaky_relu": lambda z: F.leaky_relu(z, negative_slope), "tanh": torch.tanh, "identity": lambda z: z}
    frames = x.chunk(steps)
    y = [act[activation](F.batch_norm(x_t, None, None, weight, bias, training=True, eps=eps)) for x_t in frames]
    mean = [x_t.detach().mean((0, 2, 3)) for x_t in frames]
    var = [x_t.detach().var((0, 2, 3), unbiased=False) for x_t in frames]
    return torch.cat(y), torch.stack(mean), torch.stack(var)


def frame_conv(x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor, transposed: bool) -> tuple[Tensor, ...]:
    convolve = F.conv_transpose2d if transposed else F.conv2d
    y = convolve(x, weight, bias, stride=2 if weight.shape[2] == 4 else 1, padding=1)
    return (y + addend.repeat(len(x) // len(addend), 1, 1, 1),)


@torch.no_grad()
def frame_scores(prediction: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
    """Every window is laid out, and its variances are those of its deviations from its own mean."""
    x, y = torch.broadcast_tensors(prediction, truth)
    windows_x, windows_y = (planes.unfold(2, 7, 1).unfold(3, 7, 1).flatten(4) for planes in (x, y))
    m_x, m_y = windows_x.mean(-1), windows_y.mean(-1)
    d_x, d_y = windows_x - m_x[..., None], windows_y - m_y[..., None]
    covariance, variances = (d_x * d_y).sum(-1) / 48, (d_x.square() + d_y.square()).sum(-1) / 48
    ssims = []
    for data_range in (1, 2):
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        luminance = (2 * m_x * m_y + c1) / (m_x.square() + m_y.square() + c1)
        ssims.append((luminance * (2 * covariance + c2) / (variances + c2)).mean((2, 3)))
    return F.mse_loss(x, y, reduction="none").mean((2, 3)), *ssims


def update_running_statistics(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, repeats: Tensor, momentum: float = 0.1
) -> tuple[Tensor, ...]:
    """Two images m - d and m + d have mean m and unbiased variance 2 d^2: `nn.BatchNorm2d` does the rest."""
    norm = nn.BatchNorm2d(mean.shape[1], momentum=momentum, dtype=mean.dtype)
    norm.load_state_dict({"running_mean": running_mean, "running_var": running_var}, strict=False)
    for m, v, count in zip(mean, var, repeats.tolist(), strict=True):
        for _ in range(count):
            norm(torch.stack((m - (v / 2).sqrt(), m + (v / 2).sqrt()))[:, :, None, None])
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var
