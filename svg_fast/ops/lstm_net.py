"""One step of a whole recurrent net for rollouts: embedding, LSTM cells and heads in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import lstm_net as reference
from ._checks import check_floating, check_rank, check_tensor
from ._declare import declare, refuse_gradient
from .gaussian import check_noise
from .lstm import check_stack

_NO_GRADIENT = (
    "lstm_net_step has no gradient: it must be called under torch.no_grad(), or without tensors that require one;"
    " to differentiate, compose torch.nn.functional.linear and lstm_step"
)


def lstm_net_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_embed: Tensor,
    b_embed: Tensor,
    w_ih: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    b_ih: Sequence[Tensor],
    b_hh: Sequence[Tensor],
    w_head: Sequence[Tensor],
    b_head: Sequence[Tensor],
    *,
    seed: int | Tensor | None = None,
    eps: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """One time step of a recurrent net: a linear embedding, L LSTM layers, and linear heads on the top layer's output.

    B batch, I inputs, H hidden units, O outputs of a head; gates packed (i, f, g, o) as in `torch.nn.LSTMCell`.

    x (B, I), h, c (L, B, H); w_embed (H, I), b_embed (H,); for each layer k: w_ih[k], w_hh[k] (4H, H), b_ih[k],
    b_hh[k] (4H,); for each head j: w_head[j] (O, H), b_head[j] (O,) -> the next h, c (L, B, H), and
    with one head tanh of its output (B, O): the frame predictor;
    with two heads mu, logvar (B, O) of a diagonal Gaussian, and where `seed` or `eps` is given its sample z (B, O):
    posterior and prior. The noise is that of `gaussian_rsample`: `seed` is an int or an int64 tensor (2,) of (seed,
    offset), which may live on the device, where a captured graph reads what it holds at each replay; `eps` (B, O) takes
    its place.

    For rollouts: it has no gradient. With gradients enabled, compose `torch.nn.functional.linear` and `lstm_step`.

    Raises ValueError on a shape, count or device that does not fit, TypeError on a dtype that is not floating point,
    RuntimeError where an argument requires a gradient and gradients are enabled.
    """
    check_floating("x", x)
    check_rank("x", x, "B, I")
    check_rank("h", h, "L, B, H")
    (batch, inputs), hidden = x.shape, h.shape[2]
    check_stack(x, h, c, hidden, {"w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh})
    check_tensor("w_embed", w_embed, x, (hidden, inputs))
    check_tensor("b_embed", b_embed, x, (hidden,))
    outputs = _check_heads(x, hidden, w_head, b_head)
    if seed is not None or eps is not None:
        if len(w_head) != 2:
            raise ValueError("seed and eps are for the sample of a Gaussian: they need two heads, mu and logvar, got 1")
        eps, seed = check_noise(x, (batch, outputs), seed, eps)
    parameters = w_embed, b_embed, list(w_ih), list(w_hh), list(b_ih), list(b_hh), list(w_head), list(b_head)
    if torch.is_grad_enabled() and any(
        tensor.requires_grad
        for argument in (x, h, c, *parameters)
        for tensor in (argument if isinstance(argument, list) else [argument])
    ):
        raise RuntimeError(_NO_GRADIENT)
    if torch.compiler.is_compiling():
        h_next, c_next, results = _net_step(x, h, c, *parameters, eps, seed)
    else:
        with torch._C._AutoDispatchBelowAutograd():  # there is nothing for autograd to do
            h_next, c_next, results = _net_step(x, h, c, *parameters, eps, seed)
    return h_next, c_next, *results


def _check_heads(x: Tensor, hidden: int, w_head: Sequence[Tensor], b_head: Sequence[Tensor]) -> int:
    """The number of a head's outputs."""
    for name, stack in (("w_head", w_head), ("b_head", b_head)):
        if not hasattr(stack, "__len__"):
            raise TypeError(f"{name} must be a sequence of tensors, got {type(stack).__name__}")
        if len(stack) not in (1, 2) or len(stack) != len(w_head):
            raise ValueError(f"{name} must hold one tensor for each head (1 or 2), got {len(stack)}")
    check_rank("w_head[0]", w_head[0], "O, H")
    outputs = len(w_head[0])
    for k in range(len(w_head)):
        check_tensor("w_head", w_head[k], x, (outputs, hidden), k)
        check_tensor("b_head", b_head[k], x, (outputs,), k)
    return outputs


def _fake(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_embed: Tensor,
    b_embed: Tensor,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
    b_ih: list[Tensor],
    b_hh: list[Tensor],
    w_head: list[Tensor],
    b_head: list[Tensor],
    eps: Tensor | None,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    sampled = len(w_head) == 2 and (eps is not None or seed is not None)
    outputs = [x.new_empty(len(x), len(w_head[0])) for _ in range(3 if sampled else len(w_head))]
    return h.new_empty(h.shape), c.new_empty(c.shape), outputs


_net_step = declare(
    "lstm_net_step_fwd(Tensor x, Tensor h, Tensor c, Tensor w_embed, Tensor b_embed, Tensor[] w_ih, Tensor[] w_hh,"
    " Tensor[] b_ih, Tensor[] b_hh, Tensor[] w_head, Tensor[] b_head, Tensor? eps, Tensor? seed)"
    " -> (Tensor h_next, Tensor c_next, Tensor[] outputs)",
    reference=reference.lstm_net_step_fwd,
    fake=_fake,
)
refuse_gradient("lstm_net_step_fwd", _NO_GRADIENT)
