"""The recurrent nets: frame predictor, posterior and prior, over a whole sequence or one step at a time.

T steps, B batch, I inputs, H = rnn_size, L layers. Parameters carry the published names; `lstm.{k}` are
`torch.nn.LSTMCell`s, of which only the parameters are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops

State = tuple[Tensor, Tensor]  # h, c (L, B, H)


class RecurrentNet(nn.Module):
    """Linear embedding, then L LSTM layers."""

    def __init__(self, input_size: int, hidden_size: int, n_layers: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.embed = nn.Linear(input_size, hidden_size)
        self.lstm = nn.ModuleList(nn.LSTMCell(hidden_size, hidden_size) for _ in range(n_layers))

    def cells(self) -> Iterator[nn.LSTMCell]:
        return (cast(nn.LSTMCell, cell) for cell in self.lstm)

    def init_state(self, batch: int) -> State:
        """h, c (L, B, H) of zeros."""
        h = self.embed.weight.new_zeros(len(self.lstm), batch, self.hidden_size)
        return h, h.clone()

    def run(self, x: Tensor) -> Tensor:
        """Inputs (T, B, I), from the zero state -> the top layer's outputs (T, B, H).

        Layer by layer, each over the whole sequence, so that every input projection is one matrix product.
        """
        h0, c0 = self.init_state(x.shape[1])
        y = self.embed(x)
        for k, cell in enumerate(self.cells()):
            gates_x = F.linear(y, cell.weight_ih, cell.bias_ih + cell.bias_hh)
            y, _ = ops.lstm_layer(gates_x, h0[k], c0[k], cell.weight_hh)
        return y

    def run_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: inputs (B, I) -> the top layer's output (B, H) and the next state."""
        cells = list(self.cells())
        weights = ([getattr(cell, name) for cell in cells] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h, c = ops.lstm_step(self.embed(x), *state, *weights)
        return h[-1], (h, c)


class LSTM(RecurrentNet):
    """The frame predictor: inputs (..., I) -> frame features (..., output_size) in (-1, 1)."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int, n_layers: int) -> None:
        super().__init__(input_size, hidden_size, n_layers)
        self.output = nn.Sequential(nn.Linear(hidden_size, output_size), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence: (T, B, I) -> (T, B, output_size)."""
        y: Tensor = self.output(self.run(x))
        return y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: (B, I) -> (B, output_size) and the next state."""
        y, state = self.run_step(x, state)
        return self.output(y), state


class GaussianLSTM(RecurrentNet):
    """Posterior or prior: frame features (..., I) -> mu, logvar (..., z_dim) of a diagonal Gaussian."""

    def __init__(self, input_size: int, z_dim: int, hidden_size: int, n_layers: int) -> None:
        super().__init__(input_size, hidden_size, n_layers)
        self.mu_net = nn.Linear(hidden_size, z_dim)
        self.logvar_net = nn.Linear(hidden_size, z_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A whole sequence: (T, B, I) -> mu, logvar (T, B, z_dim)."""
        y = self.run(x)
        return self.mu_net(y), self.logvar_net(y)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One step: (B, I) -> mu, logvar (B, z_dim) and the next state."""
        y, state = self.run_step(x, state)
        return self.mu_net(y), self.logvar_net(y), state
