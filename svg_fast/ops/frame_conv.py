"""The convolutions of the frame networks, by Winograd's minimal filtering where a kernel is loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import frame_conv as reference
from ..reference.frame_conv import stride_of
from ._checks import check_dtype, check_floating, check_like, check_rank, check_shape
from ._declare import declare, differentiate

_CHANNELS, _MOST_CHANNELS, _FEW_CHANNELS = 16, 4096, 4


class ConvWeight(NamedTuple):
    """A convolution's weight, and what a kernel made of it beforehand (`prepare_conv`)."""

    weight: Tensor
    packed: list[Tensor]


def frame_conv(
    x: Tensor,
    weight: Tensor | ConvWeight,
    bias: Tensor | None = None,
    *,
    addend: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """A 4 x 4 convolution with stride 2, or a 3 x 3 one with stride 1, both with padding 1; plus an addend.

    N images, C channels. x (N, C_in, H, W), fastest channels last; weight (C_out, C_in, k, k), or with `transposed`
    (C_in, C_out, k, k); bias (C_out,); addend (M, C_out, H', W') where M divides N: image n gets addend n % M.
    -> y (N, C_out, H', W'), channels last; H' is H / 2, 2 H, or for 3 x 3 H.

    float32 on a CPU runs by Winograd (Lavin & Gray 2016), with relative errors of about 1e-6 against float64, twice
    those of a direct sum, and 1.8 to 4 times fewer multiplications; it needs channels in multiples of 16 up to 4096,
    or up to 4 on the side of a frame. Everything else is `torch.nn.functional.conv2d` or `conv_transpose2d`.

    Raises ValueError on a shape or device that does not fit, TypeError on a dtype that is not floating point, or not
    that of x.
    """
    prepared = weight if isinstance(weight, ConvWeight) else None
    weight = prepared.weight if prepared is not None else weight
    assert isinstance(weight, Tensor)
    _check(x, weight, bias, addend, transposed)
    _check_dtypes(x, weight=weight, bias=bias, addend=addend)
    if not _fits(x, weight, bias, addend):
        return _stock(x, weight, bias, addend, transposed)
    packed = prepared.packed if prepared is not None else []
    y: Tensor = _fwd(x, weight, bias, addend, packed, transposed)
    return y


def prepare_conv(weight: Tensor, *, transposed: bool) -> ConvWeight:
    """Do once what `frame_conv` would do to a weight at every call; good until the weight changes."""
    if _weight_fits(weight):
        return ConvWeight(weight, _pack(weight.detach(), transposed, torch.is_grad_enabled()))
    dtype = torch.get_autocast_dtype(weight.device.type) if _autocasts(weight) else weight.dtype
    return ConvWeight(weight.to(dtype, memory_format=torch.channels_last, copy=True), [])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, transposed: bool) -> None:
    check_floating("x", x)
    check_rank("x", x, "N, C, H, W")
    check_like("weight", weight, x)
    if weight.dim() != 4 or tuple(weight.shape[2:]) not in ((4, 4), (3, 3)):
        raise ValueError(f"weight must have shape (C, C, 4, 4) or (C, C, 3, 3), got {list(weight.shape)}")
    c_in, c_out = weight.shape[:2] if transposed else weight.shape[1::-1]
    if x.shape[1] != c_in:
        raise ValueError(f"x must have {c_in} channels for a weight of {list(weight.shape)}, got {list(x.shape)}")
    size, stride = tuple(x.shape[2:]), stride_of(weight)
    if min(size) < 1 or (not transposed and (size[0] % stride or size[1] % stride)):
        raise ValueError(f"x must have a height and width that are multiples of {stride}, got {list(x.shape)}")
    if bias is not None:
        check_like("bias", bias, x)
        check_shape("bias", bias, (c_out,))
    if addend is not None:
        check_like("addend", addend, x)
        check_rank("addend", addend, "M, C, H, W")
        images = max(len(addend), 1)
        if len(x) % images or (len(x) and not len(addend)):
            raise ValueError(f"addend must hold a divisor of the {len(x)} images of x, got {len(addend)}")
        scale = (lambda n: n * stride) if transposed else (lambda n: n // stride)
        check_shape("addend", addend, (len(addend), c_out, *map(scale, size)))


def _check_dtypes(x: Tensor, **others: Tensor | None) -> None:
    """Autocast may mix them: it casts what it hands to a convolution."""
    if not _autocasts(x):
        for name, tensor in others.items():
            if tensor is not None:
                check_dtype(name, tensor, x.dtype)


def _autocasts(x: Tensor) -> bool:
    """Whether autocast is on where x is; the meta device knows none."""
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def _weight_fits(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or _autocasts(weight):
        return False

    def whole(channels: int) -> bool:
        return 0 < channels <= _MOST_CHANNELS and channels % _CHANNELS == 0

    many, few = weight.shape[:2]
    return whole(many) and (whole(few) or 0 < few <= _FEW_CHANNELS)


def _fits(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    same = all(tensor is None or tensor.dtype == torch.float32 for tensor in (x, *others))
    return same and _weight_fits(weight)


def _stock(x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, transposed: bool) -> Tensor:
    convolve = F.conv_transpose2d if transposed else F.conv2d
    y = convolve(x, weight, bias, stride=stride_of(weight), padding=1)
    if addend is None or not len(addend):
        return y
    return y + addend if len(addend) == len(y) else (y.unflatten(0, (-1, len(addend))) + addend).flatten(0, 1)


def _fwd_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, packed: list[Tensor], transposed: bool
) -> Tensor:
    stride = stride_of(weight)
    c_out = weight.shape[1 if transposed else 0]
    height, width = (n * stride if transposed else n // stride for n in x.shape[2:])
    return x.new_empty((x.shape[0], c_out, height, width)).to(memory_format=torch.channels_last)


def _bwd_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    packed: list[Tensor],
    transposed: bool,
    need_dx: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape).to(memory_format=torch.channels_last) if need_dx else x.new_empty(0),
        weight.new_empty(weight.shape) if need_dweight else x.new_empty(0),
        dy.new_empty(dy.shape[1]) if need_dbias else x.new_empty(0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, addend, packed, ctx.transposed = inputs
    ctx.addend_images = None if addend is None else len(addend)
    ctx.save_for_backward(x, weight, *packed)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight, *packed = ctx.saved_tensors
    need_dx, need_dweight, need_dbias, need_daddend, *_ = ctx.needs_input_grad
    needed = (need_dx, need_dweight, need_dbias)
    gradients = _bwd(dy, x, weight, packed, ctx.transposed, *needed)
    daddend = None
    if need_daddend:
        shared = ctx.addend_images
        daddend = dy if shared in (0, len(dy)) else dy.unflatten(0, (-1, shared)).sum(0)
    dx, dweight, dbias = (g if need else None for g, need in zip(gradients, needed, strict=True))
    return dx, dweight, dbias, daddend, [None] * len(packed), None


_pack = declare(
    "frame_conv_pack(Tensor weight, bool transposed, bool backward) -> Tensor[]",
    reference=reference.frame_conv_pack,
    fake=reference.frame_conv_pack,  # its layout is the kernel's secret: a traced graph packs where it convolves
)
_fwd = declare(
    "frame_conv_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? addend, Tensor[] packed, bool transposed) -> Tensor",
    reference=reference.frame_conv_fwd,
    fake=_fwd_fake,
)
_bwd = declare(
    "frame_conv_bwd(Tensor dy, Tensor x, Tensor weight, Tensor[] packed, bool transposed, bool need_dx,"
    " bool need_dweight, bool need_dbias) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference=reference.frame_conv_bwd,
    fake=_bwd_fake,
)
differentiate("frame_conv_fwd", _backward, _setup)
