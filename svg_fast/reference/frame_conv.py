"""The convolutions of the frame networks: 4 x 4 with stride 2, 3 x 3 with stride 1, padding 1, plain or transposed.

A transposed one takes its weight as `torch.nn.ConvTranspose2d` does, (C_in, C_out, k, k).
"""

from __future__ import annotations

import torch
from torch import Tensor


def stride_of(weight: Tensor) -> int:
    return 2 if weight.shape[2] == 4 else 1


def frame_conv_pack(weight: Tensor, transposed: bool, backward: bool) -> list[Tensor]:
    """What a kernel wants of the weight beforehand; nothing here."""
    return []


def frame_conv_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, packed: list[Tensor], transposed: bool
) -> Tensor:
    """The convolution of x (N, C, H, W) plus an addend whose images repeat."""
    stride = [stride_of(weight)] * 2
    y = torch.ops.aten.convolution(x, weight, bias, stride, [1, 1], [1, 1], transposed, [0, 0], 1)
    if addend is not None and len(addend):
        y = (y.unflatten(0, (-1, len(addend))) + addend).flatten(0, 1)
    return y.clone(memory_format=torch.channels_last)


def frame_conv_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    packed: list[Tensor],
    transposed: bool,
    need_dx: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the weight and the bias, empty where they are not needed."""
    stride = [stride_of(weight)] * 2
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, [1, 1], [1, 1], transposed, [0, 0], 1, [need_dx, need_dweight, False]
    )
    return (
        dx.clone(memory_format=torch.channels_last) if need_dx else x.new_empty(0),
        dweight.contiguous() if need_dweight else x.new_empty(0),
        dy.sum((0, 2, 3)) if need_dbias else x.new_empty(0),
    )
