"""LSTM ops: one layer over a whole sequence for training, one step of a stack for rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import lstm as reference
from ..reference.precision import compute_dtype
from ._checks import check_floating, check_rank, check_tensor
from ._declare import declare, differentiate


def lstm_layer(gates_x: Tensor, h0: Tensor, c0: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor]:
    """One LSTM layer over a whole sequence.

    T steps, B batch, H hidden units; gates packed (i, f, g, o) as in `torch.nn.LSTM`. The input projection, with
    both biases, is the caller's: one matrix product over T * B rows.

    gates_x (T, B, 4H), h0, c0 (B, H), w_hh (4H, H) -> y, c (T, B, H): hidden and cell state after every step,
    y in the dtype of gates_x, c in float32 or wider.

    Raises ValueError on a shape or device that does not fit, TypeError on a dtype that is not floating point.
    """
    check_floating("gates_x", gates_x)
    check_rank("gates_x", gates_x, "T, B, 4H")
    _, batch, width = gates_x.shape
    if width % 4:
        raise ValueError(f"gates_x must hold four gates of equal width, got a last dimension of {width}")
    check_tensor("h0", h0, gates_x, (batch, width // 4))
    check_tensor("c0", c0, gates_x, (batch, width // 4))
    check_tensor("w_hh", w_hh, gates_x, (width, width // 4))
    y, c, _ = _layer_fwd(gates_x, h0, c0, w_hh)
    return y, c


def lstm_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    b_ih: Sequence[Tensor],
    b_hh: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """One time step of a stack of L LSTM layers.

    B batch, I inputs, H hidden units; gates packed (i, f, g, o) as in `torch.nn.LSTMCell`.

    x (B, I), h, c (L, B, H); for each layer k: w_ih[k] (4H, I or H), w_hh[k] (4H, H), b_ih[k], b_hh[k] (4H,)
    -> the next h, c (L, B, H). The stack's output is h[-1].

    Raises ValueError on a shape, count or device that does not fit, TypeError on a dtype that is not floating point.
    """
    check_floating("x", x)
    check_rank("x", x, "B, I")
    check_rank("h", h, "L, B, H")
    check_stack(x, h, c, x.shape[1], {"w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh})
    weights = list(w_ih), list(w_hh), list(b_ih), list(b_hh)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        h_next, c_next, _ = _step_fwd(x, h, c, *weights)
    else:
        # `register_autograd` wraps an op in Python, which costs as much as a step of a few rows
        with torch._C._AutoDispatchBelowAutograd():
            h_next, c_next, _ = _step_fwd(x, h, c, *weights)
    return h_next, c_next


def check_stack(x: Tensor, h: Tensor, c: Tensor, inputs: int, weights: dict[str, Sequence[Tensor]]) -> None:
    """States (L, B, H), and w_ih, w_hh, b_ih, b_hh of L cells, the lowest of so many inputs."""
    layers, _, hidden = h.shape
    for name, stack in weights.items():
        if not hasattr(stack, "__len__"):
            raise TypeError(f"{name} must be a sequence of tensors, got {type(stack).__name__}")
        if len(stack) != layers or not layers:
            raise ValueError(
                f"{name} must hold one tensor for each layer of h ({layers}, at least 1), got {len(stack)}"
            )
    check_tensor("h", h, x, (layers, x.shape[0], hidden))
    check_tensor("c", c, x, (layers, x.shape[0], hidden))
    width = 4 * hidden
    for k in range(layers):
        check_tensor("w_ih", weights["w_ih"][k], x, (width, hidden if k else inputs), k)
        check_tensor("w_hh", weights["w_hh"][k], x, (width, hidden), k)
        check_tensor("b_ih", weights["b_ih"][k], x, (width,), k)
        check_tensor("b_hh", weights["b_hh"][k], x, (width,), k)


def _layer_fwd_fake(gates_x: Tensor, h0: Tensor, c0: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, width = gates_x.shape
    dtype = compute_dtype(gates_x.dtype)
    y = gates_x.new_empty(steps, batch, width // 4)
    return y, y.new_empty(y.shape, dtype=dtype), gates_x.new_empty(gates_x.shape, dtype=dtype)


def _layer_bwd_fake(
    dy: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    y: Tensor,
    c: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_hh: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        y.new_empty(gates.shape),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        w_hh.new_empty(w_hh.shape),
    )


def _layer_setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, h0, c0, w_hh = inputs
    y, c, gates = output
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)  # an output that nothing depends on has no gradient: no zeros are made for it
    ctx.save_for_backward(gates, y, c, h0, c0, w_hh)


def _layer_backward(
    ctx: Any, dy: Tensor | None, dc: Tensor | None, _dgates: None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _layer_bwd(dy, dc, *ctx.saved_tensors)


def _step_fwd_fake(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
    b_ih: list[Tensor],
    b_hh: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    layers, batch, hidden = h.shape
    gates = x.new_empty((layers, batch, 4 * hidden), dtype=compute_dtype(x.dtype))
    return h.new_empty(h.shape), c.new_empty(c.shape), gates


def _step_bwd_fake(
    dh: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    h_next: Tensor,
    c_next: Tensor,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    dw_ih, dw_hh = [w.new_empty(w.shape) for w in w_ih], [w.new_empty(w.shape) for w in w_hh]
    return (
        x.new_empty(x.shape),
        h.new_empty(h.shape),
        c.new_empty(c.shape),
        dw_ih,
        dw_hh,
        [w.new_empty(len(w)) for w in w_ih],
    )


def _step_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, h, c, w_ih, w_hh, _, _ = inputs
    h_next, c_next, gates = output
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)
    ctx.layers = len(w_ih)
    ctx.save_for_backward(gates, h_next, c_next, x, h, c, *w_ih, *w_hh)


def _step_backward(ctx: Any, dh: Tensor | None, dc: Tensor | None, _dgates: None) -> tuple[Any, ...]:
    saved, weights = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
    dx, dh, dc, dw_ih, dw_hh, db = _step_bwd(dh, dc, *saved, list(weights[: ctx.layers]), list(weights[ctx.layers :]))
    return dx, dh, dc, dw_ih, dw_hh, db, list(db)


_layer_fwd = declare(
    "lstm_layer_fwd(Tensor gates_x, Tensor h0, Tensor c0, Tensor w_hh) -> (Tensor y, Tensor c, Tensor gates)",
    reference=reference.lstm_layer_fwd,
    fake=_layer_fwd_fake,
)
_layer_bwd = declare(
    "lstm_layer_bwd(Tensor? dy, Tensor? dc, Tensor gates, Tensor y, Tensor c, Tensor h0, Tensor c0, Tensor w_hh)"
    " -> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dw_hh)",
    reference=reference.lstm_layer_bwd,
    fake=_layer_bwd_fake,
)
_step_fwd = declare(
    "lstm_step_fwd(Tensor x, Tensor h, Tensor c, Tensor[] w_ih, Tensor[] w_hh, Tensor[] b_ih, Tensor[] b_hh)"
    " -> (Tensor h_next, Tensor c_next, Tensor gates)",
    reference=reference.lstm_step_fwd,
    fake=_step_fwd_fake,
)
_step_bwd = declare(
    "lstm_step_bwd(Tensor? dh, Tensor? dc, Tensor gates, Tensor h_next, Tensor c_next, Tensor x, Tensor h, Tensor c,"
    " Tensor[] w_ih, Tensor[] w_hh)"
    " -> (Tensor dx, Tensor dh_prev, Tensor dc_prev, Tensor[] dw_ih, Tensor[] dw_hh, Tensor[] db)",
    reference=reference.lstm_step_bwd,
    fake=_step_bwd_fake,
)
differentiate("lstm_layer_fwd", _layer_backward, _layer_setup)
differentiate("lstm_step_fwd", _step_backward, _step_setup)
