"""LSTM cell, layer and step: the equations of `torch.nn.LSTM`, gates packed (i, f, g, o).

T steps, B batch, H hidden units, L layers of a stack. States and accumulation are in `compute_dtype`;
outputs that follow an input take that input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import compute_dtype


def lstm_cell(pre: Tensor, c_prev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations (B, 4H) and the previous cell state (B, H) -> activated gates (B, 4H), c, h (B, H)."""
    i, f, g, o = pre.chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c_prev + i * g
    return torch.cat((i, f, g, o), dim=-1), c, o * c.tanh()


def lstm_cell_bwd(dh: Tensor, dc: Tensor, gates: Tensor, c: Tensor, c_prev: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of one cell -> (dpre (B, 4H), dc_prev (B, H))."""
    i, f, g, o = gates.chunk(4, dim=-1)
    tanh_c = c.tanh()
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    dpre = (dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g * g), dh * tanh_c * o * (1 - o))
    return torch.cat(dpre, dim=-1), dc * f


def lstm_layer_fwd(gates_x: Tensor, h0: Tensor, c0: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gates_x (T, B, 4H), h0, c0 (B, H), w_hh (4H, H) -> y, c (T, B, H), activated gates (T, B, 4H)."""
    n_steps, batch, width = gates_x.shape
    dtype = compute_dtype(gates_x.dtype)
    y = torch.empty(n_steps, batch, width // 4, dtype=dtype, device=gates_x.device)
    c, gates = torch.empty_like(y), torch.empty(gates_x.shape, dtype=dtype, device=gates_x.device)
    h_t, c_t, w_t = h0.to(dtype), c0.to(dtype), w_hh.to(dtype).t()
    for t in range(n_steps):
        gates[t], c_t, h_t = lstm_cell(torch.addmm(gates_x[t].to(dtype), h_t, w_t), c_t)
        y[t], c[t] = h_t, c_t
    return y.to(gates_x.dtype), c, gates


def lstm_layer_bwd(
    dy: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    y: Tensor,
    c: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_hh: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of y and c (T, B, H), None where zero -> dgates_x (T, B, 4H), dh0, dc0 (B, H), dw_hh (4H, H)."""
    dtype = gates.dtype
    dy = torch.zeros_like(y) if dy is None else dy
    dc = torch.zeros_like(c) if dc is None else dc
    dgates = torch.empty_like(gates)
    w = w_hh.to(dtype)
    h_prev = torch.cat((h0.to(dtype).unsqueeze(0), y[:-1].to(dtype)))
    c_prev = torch.cat((c0.to(dtype).unsqueeze(0), c[:-1]))
    dh, dc_t = (
        torch.zeros(h0.shape, dtype=dtype, device=h0.device),
        torch.zeros(c0.shape, dtype=dtype, device=c0.device),
    )
    for t in reversed(range(len(gates))):
        dgates[t], dc_t = lstm_cell_bwd(dh + dy[t], dc_t + dc[t], gates[t], c[t], c_prev[t])
        dh = dgates[t] @ w
    dw_hh = dgates.flatten(0, 1).t() @ h_prev[: len(gates)].flatten(0, 1)
    return dgates.to(y.dtype), dh.to(h0.dtype), dc_t.to(c0.dtype), dw_hh.to(w_hh.dtype)


def lstm_step_fwd(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
    b_ih: list[Tensor],
    b_hh: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, I), h, c (L, B, H) -> next h, c (L, B, H), activated gates (L, B, 4H). The top layer's h is the output."""
    dtype = compute_dtype(x.dtype)
    below, steps = x.to(dtype), []
    for k, (h_k, c_k) in enumerate(zip(h.to(dtype), c.to(dtype), strict=True)):
        bias = b_ih[k].to(dtype) + b_hh[k].to(dtype)
        pre = torch.addmm(bias, below, w_ih[k].to(dtype).t()).addmm_(h_k, w_hh[k].to(dtype).t())
        steps.append(lstm_cell(pre, c_k))
        below = steps[-1][2]
    gates, c_next, h_next = (torch.stack(column) for column in zip(*steps, strict=True))
    return h_next.to(h.dtype), c_next.to(c.dtype), gates


def lstm_step_bwd(
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
    """Gradients of the next h, c (L, B, H), None where zero -> dx (B, I), dh, dc (L, B, H), dw_ih, dw_hh and the bias
    gradient."""
    dtype = gates.dtype
    dh = torch.zeros_like(h) if dh is None else dh
    dc = torch.zeros_like(c) if dc is None else dc
    dh_prev, dc_prev = (
        torch.empty(h.shape, dtype=dtype, device=h.device),
        torch.empty_like(gates[..., : h.shape[-1]]),
    )
    dw_ih: list[Tensor] = []
    dw_hh: list[Tensor] = []
    db: list[Tensor] = []
    dbelow: Tensor | float = 0.0
    for k in reversed(range(len(gates))):
        below = x if k == 0 else h_next[k - 1]
        dpre, dc_prev[k] = lstm_cell_bwd(
            dh[k].to(dtype) + dbelow, dc[k].to(dtype), gates[k], c_next[k].to(dtype), c[k].to(dtype)
        )
        dh_prev[k], dbelow = dpre @ w_hh[k].to(dtype), dpre @ w_ih[k].to(dtype)
        dw_ih.insert(0, (dpre.t() @ below.to(dtype)).to(w_ih[k].dtype))
        dw_hh.insert(0, (dpre.t() @ h[k].to(dtype)).to(w_hh[k].dtype))
        db.insert(0, dpre.sum(0).to(w_ih[k].dtype))
    assert isinstance(dbelow, Tensor)
    return dbelow.to(x.dtype), dh_prev.to(h.dtype), dc_prev.to(c.dtype), dw_ih, dw_hh, db
