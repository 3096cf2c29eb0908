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


def _normalise(
    x_t: Tensor, mean_t: Tensor, var_t: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor
) -> Tensor:
    unused = (weight.new_empty(0), weight.new_empty(0))
    torch.native_batch_norm(x_t, weight, bias, mean_t, var_t, False, 0.0, eps, out=(out, *unused))
    return out


def _activate(z: Tensor, activation: str, negative_slope: float) -> Tensor:
    """In place: z is our own."""
    if activation == "leaky_relu":
        return F.leaky_relu_(z, negative_slope)
    return z.tanh_() if activation == "tanh" else z


def _activate_bwd(dy: Tensor, z: Tensor, activation: str, negative_slope: float) -> Tensor:
    if activation == "leaky_relu":
        return torch.ops.aten.leaky_relu_backward(dy, z, negative_slope, False)
    return torch.ops.aten.tanh_backward(dy, z.tanh()) if activation == "tanh" else dy


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
        _normalise(x_t, mean_t, var_t, weight, bias, eps, out=y_t)
    return _activate(y, activation, negative_slope), mean, var


def batch_norm_act_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    steps: int,
    activation: str,
    negative_slope: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of y -> dx, dweight, dbias. What was activated is computed anew: cheaper than to keep and read y."""
    dx = torch.empty_like(x)
    dweight, dbias = torch.zeros_like(mean), torch.zeros_like(mean)
    if x.numel():
        shape = steps, x.shape[1]
        scale, bias = _packed(weight.to(mean.dtype), shape[1:]), _packed(bias.to(mean.dtype), shape[1:])
        mean, var = _packed(mean, shape), _packed(var, shape)
        invstd = (var + eps).rsqrt()
        chunks = (tensor.chunk(steps) for tensor in (dy.reshape(x.shape), x, dx))
        for dy_t, x_t, dx_t, mean_t, var_t, invstd_t, dweight_t, dbias_t in zip(
            *chunks, mean, var, invstd, dweight, dbias, strict=True
        ):
            z_t = _normalise(x_t, mean_t, var_t, scale, bias, eps, out=torch.empty_like(x_t))
            torch.ops.aten.native_batch_norm_backward.out(
                _activate_bwd(dy_t, z_t, activation, negative_slope),
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
