"""`batch_norm_act` with the statistics of a step taken over the images of all processes of a group.

Each process holds some images of every one of the G time steps; how many may differ from process to process. What
travels is a few numbers for each step and channel, never activations: one collective forward, one backward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..reference.precision import compute_dtype
from .batch_norm_act import Activation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_IMAGES_AND_PIXELS = (1, 3, 4)  # of x (G, N, C, H, W)


def synchronised_batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    group: ProcessGroup,
    steps: int = 1,
    activation: Activation = "leaky_relu",
    negative_slope: float = 0.2,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each time step by its statistics over all processes of `group`, scale, shift and activate.

    x (G * N, C, H, W), N this process's images of each of the G = `steps` steps, at least one; weight, bias (C,), the
    same in all processes -> y like x; the steps' mean and population variance (G, C) and the number of values behind
    each of them (), the same in all processes, in float32 or wider. No gradient flows through those three.

    The processes call it together, and go backward through it together, in the same order and with the same G and C.

    Gradients are those of the sum of all processes' losses. That of x holds what an image does to the other processes'
    losses through the statistics; those of weight and bias are sums over this process's images alone, whose sum over
    the processes is the gradient. `DistributedDataParallel` divides that sum by the number of processes P. So, for the
    mean over a global batch of n clips, n_p of them here, scale this process's mean loss by P * n_p / n, and do so
    before the backward pass: afterwards the processes' parts of dx could no longer be told apart.

    Raises ValueError on images that do not fit, and where a step has one value per channel in all processes together.
    """
    if steps < 1 or not len(x) or len(x) % steps:
        raise ValueError(
            f"every process must hold some images of each step, as many of each, got {len(x)} images for {steps} steps"
        )
    if x.numel() == steps * x.shape[1] and dist.get_world_size(group) == 1:
        raise ValueError(
            "batch statistics need more than one value per channel, got one image of 1 x 1 in all processes together;"
            " use a batch of two or more, or running statistics"
        )
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()  # as batch_norm_act
    options = (group, steps, activation, negative_slope, eps)
    y, mean, var, count = _SynchronisedNorm.apply(x, weight, bias, *options)
    return y, mean, var, count


def largest(value: int, group: ProcessGroup) -> int:
    """The largest of the processes' values, which are on the CPU."""
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX, group)
    return int(found)


class _SynchronisedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        group: ProcessGroup,
        steps: int,
        activation: Activation,
        negative_slope: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = compute_dtype(x.dtype)
        x_g = x.unflatten(0, (steps, -1))
        centre = x_g.mean(_IMAGES_AND_PIXELS, dtype=dtype)
        centred = x_g - _beside(centre)
        own = [centre, centred.mean(_IMAGES_AND_PIXELS), centred.square().mean(_IMAGES_AND_PIXELS)]
        mean, var, count = _over_processes(torch.stack(own), x.numel() // centre.numel(), group)
        scale = weight.to(dtype) * (var + eps).rsqrt()
        shift = (centre - mean) * scale + bias.to(dtype)
        z = torch.addcmul(_beside(shift), centred, _beside(scale), out=centred)
        if activation != "identity":
            z = F.leaky_relu_(z, negative_slope) if activation == "leaky_relu" else z.tanh_()
        ctx.mark_non_differentiable(mean, var, count)
        ctx.save_for_backward(x, weight, bias, mean, var, count)
        ctx.group, ctx.options = group, (activation, negative_slope, eps)
        return z.to(x.dtype).flatten(0, 1), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_statistics: Tensor) -> tuple[Tensor | None, ...]:
        """The kernel takes a process for the whole: from dz it takes away the part along ones and along the normalised
        x by the means of dz and dz * normalised over x. Those over all processes' values are to go instead."""
        x, weight, bias, mean, var, count = ctx.saved_tensors
        steps = len(mean)
        *_, eps = ctx.options
        scale, shift = weight.to(mean.dtype), bias.to(mean.dtype)
        # a step a call, since the sums of dz and dz * normalised that come back, dbias and dweight, are wanted of each
        dx, dweight, dbias = zip(
            *(
                torch.ops.svg_fast.batch_norm_act_bwd(dy_t, x_t, scale, shift, mean_t, var_t, 1, *ctx.options)
                for dy_t, x_t, mean_t, var_t in zip(*(whole.chunk(steps) for whole in (dy, x, mean, var)), strict=True)
            ),
            strict=True,
        )
        own = torch.stack((torch.stack(dbias), torch.stack(dweight)))
        total = own.clone()
        dist.all_reduce(total, group=ctx.group)
        invstd = (var + eps).rsqrt()
        by_ones, by_normalised = (own * (mean.numel() / x.numel()) - total / count) * (scale * invstd)
        centred = x.unflatten(0, (steps, -1)) - _beside(mean)
        excess = torch.addcmul(_beside(by_ones), centred, _beside(by_normalised * invstd), out=centred)
        dbias, dweight = own.sum(1)
        return torch.cat(dx).add_(excess.flatten(0, 1)), dweight.to(weight.dtype), dbias.to(bias.dtype), *[None] * 5


def _beside(statistic: Tensor) -> Tensor:
    """(G, C), to go with (G, N, C, H, W)."""
    return statistic[:, None, :, None, None]


def _over_processes(own: Tensor, count: int, group: ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (G, C) of all processes' values, and their number (), from each one's moments (3, G, C): about
    where its values lie, their mean about there, which is what rounding left of it, and their mean square about there.

    All processes compute them from the same numbers in the same order.
    """
    message = torch.cat((own.new_full((1,), count), own.flatten()))
    messages = own.new_empty((dist.get_world_size(group), len(message)))
    dist.all_gather(list(messages), message, group)
    total = messages[:, 0].sum()
    share = (messages[:, 0] / total).view(-1, 1, 1)
    centres, means, squares = messages[:, 1:].unflatten(1, own.shape).unbind(1)
    # about the first one's centre: numbers as small as the values' spread
    offsets = centres - centres[0] + means
    offset = (share * offsets).sum(0)
    variances = (squares - means.square()).clamp_min(0)  # of a constant, rounding alone is left
    return centres[0] + offset, (share * (variances + (offsets - offset).square())).sum(0), total
