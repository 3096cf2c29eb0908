"""One step of a whole recurrent net: embedding, LSTM cells, and the heads that read the top layer.

B batch, I inputs, H hidden units, L layers, O outputs of a head. Everything between x and the results is in
`compute_dtype`; what follows an input takes that input's dtype.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .gaussian import gaussian_rsample_fwd
from .lstm import lstm_step_fwd
from .precision import compute_dtype


def lstm_net_step_fwd(
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
    """x (B, I), h, c (L, B, H) -> next h, c (L, B, H) and what the heads say, each (B, O).

    One head gives [tanh(w y + b)]; two give [mu, logvar] of a Gaussian, and with eps or seed its sample z.
    """
    dtype = compute_dtype(x.dtype)
    embedded = F.linear(x.to(dtype), w_embed.to(dtype), b_embed.to(dtype))
    h_next, c_next, _ = lstm_step_fwd(embedded, h.to(dtype), c.to(dtype), w_ih, w_hh, b_ih, b_hh)
    outputs = [F.linear(h_next[-1], w.to(dtype), b.to(dtype)) for w, b in zip(w_head, b_head, strict=True)]
    if len(outputs) == 1:
        outputs = [outputs[0].tanh()]
    elif eps is not None or seed is not None:
        mu, logvar = outputs
        outputs.append(gaussian_rsample_fwd(mu, logvar, eps, seed))
    return h_next.to(h.dtype), c_next.to(c.dtype), [y.to(x.dtype) for y in outputs]
