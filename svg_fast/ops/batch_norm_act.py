"""BatchNorm with statistics per time step and an activation, in one op; and the running statistics that follow."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..reference import batch_norm_act as reference
from ..reference.precision import compute_dtype
from ._checks import check_dense, check_floating, check_integer, check_like, check_number, check_rank, check_shape
from ._declare import declare, differentiate

Activation = Literal["leaky_relu", "tanh", "identity"]


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    steps: int = 1,
    activation: Activation = "leaky_relu",
    negative_slope: float = 0.2,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each time step by its own batch statistics, scale, shift and activate.

    G = `steps` time steps of N images lie one after another along dimension 0, as the published loop would have
    presented them one by one.

    x (G * N, C, H, W), fastest where contiguous or channels_last; weight, bias (C,) -> y like x, and the steps' mean
    and population variance (G, C), in float32 or wider; no gradient flows through those two.

    Raises ValueError on a shape, device or activation that does not fit, and where a step has one value per channel.
    """
    check_floating("x", x)
    check_rank("x", x, "G * N, C, H, W")
    for name, tensor in (("weight", weight), ("bias", bias)):
        check_like(name, tensor, x)
        check_shape(name, tensor, (x.shape[1],))
    check_integer("steps", steps)
    check_number("negative_slope", negative_slope)
    check_number("eps", eps)
    if activation not in get_args(Activation):
        raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, got {activation!r}")
    if steps < 1 or x.shape[0] % steps:
        raise ValueError(f"dimension 0 of x must be a multiple of steps, got {x.shape[0]} images for {steps} steps")
    if negative_slope < 0:
        raise ValueError(f"negative_slope must not be negative, got {negative_slope}")
    if x.shape[0] * x.shape[2] * x.shape[3] == steps:
        raise ValueError(
            "batch statistics need more than one value per channel, got one image of 1 x 1; use a batch of two or more,"
            " or running statistics"
        )
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()  # so that kernels meet two layouts only
    y, mean, var = _fwd(x, weight, bias, steps, activation, negative_slope, eps)
    return y, mean, var


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    repeats: Tensor,
    momentum: float = 0.1,
) -> None:
    """Advance running statistics, in place, as if the steps had been presented one after another.

    mean, var (G, C): mean and unbiased variance of each step; repeats (G,) on the CPU: how often step g was presented
    in a row (the published SVG-LP loop encodes every inner frame twice); running_mean, running_var (C,).

    Each presentation is running = (1 - momentum) * running + momentum * statistic, so a statistic followed by k more
    presentations keeps the weight momentum * (1 - momentum)**k: the whole series is one weighted sum.

    Raises ValueError on a shape, device or momentum that does not fit, TypeError on a dtype that does not.
    """
    check_floating("mean", mean)
    check_rank("mean", mean, "G, C")
    steps, channels = mean.shape
    for name, tensor, shape in (
        ("var", var, (steps, channels)),
        ("running_mean", running_mean, (channels,)),
        ("running_var", running_var, (channels,)),
    ):
        check_like(name, tensor, mean)
        check_shape(name, tensor, shape)
    check_dense("repeats", repeats)
    check_shape("repeats", repeats, (steps,))
    if repeats.device.type != "cpu":
        raise ValueError(f"repeats must be on the CPU, got {repeats.device}")
    if repeats.is_complex() or repeats.is_quantized:
        raise TypeError(f"repeats must be real counts, got {repeats.dtype}")
    check_number("momentum", momentum)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1], got {momentum}")
    weights = presentation_weights(repeats, momentum).to(mean)
    for running, statistic in ((running_mean, mean), (running_var, var)):
        running.mul_(weights[0]).add_(_weighted_sum(statistic, weights))


def presentation_weights(repeats: Tensor, momentum: float) -> Tensor:
    """repeats (G,) on any device -> (1 + G,) float64 there: what is kept of running statistics, each step's weight."""
    keep = (1 - momentum) ** repeats.to(torch.float64)
    # what is kept of the running statistics, then of each step: the product of all later steps' keep
    kept = torch.cat((keep, keep.new_ones(1))).flip(0).cumprod(0).flip(0)
    return torch.cat((kept[:1], kept[1:] * (1 - keep)))


def _weighted_sum(statistic: Tensor, weights: Tensor) -> Tensor:
    return (weights[1:].unsqueeze(1) * statistic).sum(0)


@torch.no_grad()
def advance_running_statistics(running: list[Tensor], statistics: list[Tensor], weights: Tensor) -> None:
    """`update_running_statistics` of many, unchecked: running (C,), statistics (G, C), `presentation_weights`."""
    weights = weights.to(statistics[0])
    torch._foreach_mul_(running, weights[0])
    torch._foreach_add_(running, [_weighted_sum(statistic, weights) for statistic in statistics])


def _fwd_fake(
    x: Tensor, weight: Tensor, bias: Tensor, steps: int, activation: str, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((steps, x.shape[1]), dtype=compute_dtype(x.dtype))
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _bwd_fake(
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
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, *ctx.options = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)  # no zeros for the statistics, whose cotangents nobody reads
    ctx.save_for_backward(x, weight, bias, mean, var)


def _backward(ctx: Any, dy: Tensor | None, _dmean: None, _dvar: None) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 7
    return (*_bwd(dy, *ctx.saved_tensors, *ctx.options), None, None, None, None)


_OPTIONS = "int steps, str activation, float negative_slope, float eps"
_fwd = declare(
    f"batch_norm_act_fwd(Tensor x, Tensor weight, Tensor bias, {_OPTIONS}) -> (Tensor y, Tensor mean, Tensor var)",
    reference=reference.batch_norm_act_fwd,
    fake=_fwd_fake,
)
_bwd = declare(
    f"batch_norm_act_bwd(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, {_OPTIONS})"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference=reference.batch_norm_act_bwd,
    fake=_bwd_fake,
)
differentiate("batch_norm_act_fwd", _backward, _setup)
