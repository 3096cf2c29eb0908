"""`torch.nn`'s LSTM and LSTMCell over the ops of this library: the same arguments, parameters, results and errors.

T steps, B batch, I inputs, H hidden units, L layers, D directions (1 or 2).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import ops

__all__ = ["LSTM", "LSTMCell"]

State = tuple[Tensor, Tensor]  # h, c


class LSTM(nn.RNNBase):
    """Drop-in for `torch.nn.LSTM`, all of it but `proj_size`.

    Not a subclass of it: torch.compile refuses to trace those, and traces this one whole.

    Raises ValueError where proj_size is not 0, and where torch's own raises.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)
        if self.proj_size:
            raise ValueError(f"proj_size must be 0 here, got {self.proj_size}; torch.nn.LSTM has projections")

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> tuple[Any, State]:
        """input (T, B, I), or (B, T, I) where batch_first, (T, I) or packed; hx = h, c (L * D, B, H)
        -> the top layer's outputs (T, B, D * H), laid out like the input, and the last h, c.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        if hx is not None and not hx[0].dim() == hx[1].dim() == input.dim():
            raise RuntimeError(
                f"hx and cx should be {input.dim()}-D like the input, got {hx[0].dim()}-D and {hx[1].dim()}-D"
            )
        time_dim = 1 if batched and self.batch_first else 0
        x = input.transpose(0, time_dim) if batched else input.unsqueeze(1)
        if hx is not None and not batched:
            hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        y, (h, c) = self._run(x, hx, Sequences(x.shape[0]))
        if batched:
            return y.transpose(0, time_dim), (h, c)
        return y.squeeze(1), (h.squeeze(1), c.squeeze(1))

    def _forward_packed(self, packed: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        """Filled up to the longest sequence; what lies past an end reaches neither results nor gradients."""
        data, batch_sizes, order, back = packed
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        if hx is not None and order is not None:
            hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
        y, (h, c) = self._run(x, hx, Sequences(x.shape[0], lengths.to(x.device)))
        if back is not None:
            h, c = h.index_select(1, back), c.index_select(1, back)
        return PackedSequence(pack_padded_sequence(y, lengths).data, batch_sizes, order, back), (h, c)

    def _run(self, x: Tensor, hx: State | None, sequences: Sequences) -> tuple[Tensor, State]:
        """x (T, B, I), hx (L * D, B, H) -> y (T, B, D * H) and the last h, c."""
        self.check_input(x, None)
        weights = self.all_weights
        shape = (len(weights), x.shape[1], self.hidden_size)
        if hx is None:
            hx = x.new_zeros(shape), x.new_zeros(shape)
        for k, state in enumerate(hx):
            self.check_hidden_size(state, shape, f"Expected hidden[{k}] size {{}}, got {{}}")
        directions = 2 if self.bidirectional else 1
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.training and self.dropout:
                x = sequences.dropout(x, self.dropout)
            outputs = []
            for direction in range(directions):
                k = len(last)
                w_ih, w_hh, *biases = weights[k]
                bias = biases[0] + biases[1] if biases else None
                gates_x = F.linear(sequences.turned(x) if direction else x, w_ih, bias)
                y, c = ops.lstm_layer(gates_x, hx[0][k], hx[1][k], w_hh)
                last.append((sequences.last(y), sequences.last(c).to(y.dtype)))
                outputs.append(sequences.turned(y) if direction else y)
            x = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
        h, c = (torch.stack(states) for states in zip(*last, strict=True))
        return x, (h, c)


class Sequences:
    """How far the sequences of a batch go: T steps, or `lengths` (B,), the longest first and of T steps."""

    def __init__(self, n_steps: int, lengths: Tensor | None = None) -> None:
        if n_steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        self.lengths = lengths
        if lengths is not None:
            step = torch.arange(n_steps, device=lengths.device).unsqueeze(1)
            self.batch = torch.arange(len(lengths), device=lengths.device)
            self.opposite = torch.where(step < lengths, lengths - 1 - step, step)

    def turned(self, x: Tensor) -> Tensor:
        """x (T, B, ...) with each sequence from its end to its beginning."""
        return x.flip(0) if self.lengths is None else x[self.opposite, self.batch]

    def last(self, x: Tensor) -> Tensor:
        """x (T, B, ...) at each sequence's last step (B, ...)."""
        return x[-1] if self.lengths is None else x[self.lengths - 1, self.batch]

    def dropout(self, x: Tensor, p: float) -> Tensor:
        """Random numbers are drawn as torch's LSTM draws them: where packed, for the steps that there are."""
        if self.lengths is None:
            return F.dropout(x, p)
        packed = pack_padded_sequence(x, self.lengths.cpu())
        return pad_packed_sequence(packed._replace(data=F.dropout(packed.data, p)))[0]


class LSTMCell(nn.LSTMCell):
    """Drop-in for `torch.nn.LSTMCell`."""

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """input (B, I) or (I,), hx = h, c of (B, H) or (H,) -> the next h, c of that shape."""
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            h = c = x.new_zeros(1, x.shape[0], self.hidden_size)
        else:
            h, c = (state.unsqueeze(0) if batched else state[None, None] for state in hx)
        zeros = None if self.bias else self.weight_hh.new_zeros(len(self.weight_hh))
        biases = ([self.bias_ih], [self.bias_hh]) if zeros is None else ([zeros], [zeros])
        h, c = ops.lstm_step(x, h, c, [self.weight_ih], [self.weight_hh], *biases)
        return (h[0], c[0]) if batched else (h[0, 0], c[0, 0])
