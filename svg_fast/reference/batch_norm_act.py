"""BatchNorm with statistics per time step, then an activation.

G time steps (groups) of N images lie one after another along dimension 0: x (G * N, C, H, W). The published loop
calls a network once per frame, so each step is normalised by its own mean and variance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import compute_dtype


def _packed(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """ATen's BatchNorm reads the numbers of channels without a look at their shape, and of some without strides."""
    return tensor.reshape(shape).contiguous()


def _activate(x: Tensor, activation: str, negative_slope: float) -> Tensor:
    """In place: x is our own."""
    if activation == "leaky_relu":
        return F.leaky_relu_(x, negative_slope)
    return x.tanh_() if activation == "tanh" else x


def _activate_bwd(dy: Tensor, y: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Both activations have a derivative that their output determines."""
    if activation == "leaky_relu":
        return torch.ops.aten.leaky_relu_backward(dy, y, negative_slope, True)
    return torch.ops.aten.tanh_backward(dy, y) if activation == "tanh" else dy


def batch_norm_act_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, steps: int, activation: str, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x (G * N, C, H, W), weight, bias (C,) -> y like x, and each step's mean and (population) variance (G, C).

    Two passes a step. ATen's own statistics are faster, but with channels last they are running float32 sums, twenty
    times less exact, and an error of the mean moves activations across LeakyReLU's kink.
    """
    y = torch.empty_like(x)
    shape, dtype = (steps, x.shape[1]), compute_dtype(x.dtype)
    mean = torch.zeros(shape, dtype=dtype, device=x.device)
    var = torch.zeros_like(mean)
    if x.numel() == 0:
        return y, mean, var
    weight, bias = _packed(weight.to(dtype), shape[1:]), _packed(bias.to(dtype), shape[1:])
    for y_t, x_t, mean_t, var_t in zip(y.chunk(steps), x.chunk(steps), mean, var, strict=True):
        torch.mean(x_t, (0, 2, 3), dtype=dtype, out=mean_t)
        torch.mean((x_t - mean_t.view(-1, 1, 1)).square_(), (0, 2, 3), out=var_t)
        unused = (mean.new_empty(0), mean.new_empty(0))
        torch.native_batch_norm(x_t, weight, bias, mean_t, var_t, False, 0.0, eps, out=(y_t, *unused))
    return _activate(y, activation, negative_slope), mean, var


def batch_norm_act_bwd(
    dy: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    mean: Tensor,
    var: Tensor,
    steps: int,
    activation: str,
    negative_slope: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of y -> dx, dweight, dbias."""
    dx = torch.empty_like(x)
    dweight, dbias = torch.zeros_like(mean), torch.zeros_like(mean)
    if x.numel():
        shape = steps, x.shape[1]
        dz = _activate_bwd(dy, y, activation, negative_slope).reshape(x.shape)
        scale, invstd = _packed(weight.to(mean.dtype), shape[1:]), _packed((var + eps).rsqrt(), shape)
        mean = _packed(mean, shape)
        rows = zip(dz.chunk(steps), x.chunk(steps), mean, invstd, dx.chunk(steps), dweight, dbias, strict=True)
        for dz_t, x_t, mean_t, invstd_t, dx_t, dweight_t, dbias_t in rows:
            torch.ops.aten.native_batch_norm_backward.out(
                dz_t,
                x_t,
                scale,
                None,
                None,
                mean_t,
                invstd_t,
                True,
                eps,
                [True] * 3,
                out0=dx_t,
                out1=dweight_t,
                out2=dbias_t,
            )
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(weight.dtype)
