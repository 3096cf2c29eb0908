"""The recurrent nets: frame predictor, posterior and prior, over a whole sequence or one step at a time.

T steps, B batch, I inputs, H = rnn_size, L layers. Parameters carry the published names; `lstm.{k}` are
`torch.nn.LSTMCell`s, of which only the parameters are used.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import cast

import torch
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

    @abstractmethod
    def heads(self) -> list[nn.Linear]:
        """What reads the top layer's output: one layer, of which tanh is taken, or those of mu and logvar."""

    def run_step(
        self, x: Tensor, state: State, *, seed: Tensor | None = None, eps: Tensor | None = None
    ) -> tuple[list[Tensor], State]:
        """One step: inputs (B, I) -> what the heads say, as `ops.lstm_net_step` has it, and the next state."""
        (h, c), heads = state, self.heads()
        w_ih, w_hh, b_ih, b_hh = (
            [getattr(cell, name) for cell in self.cells()] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if not torch.is_grad_enabled():
            w_head, b_head = [head.weight for head in heads], [head.bias for head in heads]
            embed = self.embed.weight, self.embed.bias
            h, c, *outputs = ops.lstm_net_step(
                x, h, c, *embed, w_ih, w_hh, b_ih, b_hh, w_head, b_head, seed=seed, eps=eps
            )
            return outputs, (h, c)
        h, c = ops.lstm_step(self.embed(x), h, c, w_ih, w_hh, b_ih, b_hh)
        outputs = [head(h[-1]) for head in heads]
        if len(outputs) == 1:
            return [outputs[0].tanh()], (h, c)
        if seed is not None or eps is not None:
            mu, logvar = outputs
            outputs.append(ops.gaussian_rsample(mu, logvar, seed=seed, eps=eps))
        return outputs, (h, c)


class LSTM(RecurrentNet):
    """The frame predictor: inputs (..., I) -> frame features (..., output_size) in (-1, 1)."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int, n_layers: int) -> None:
        super().__init__(input_size, hidden_size, n_layers)
        self.output = nn.Sequential(nn.Linear(hidden_size, output_size), nn.Tanh())

    def heads(self) -> list[nn.Linear]:
        return [cast(nn.Linear, self.output[0])]

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence: (T, B, I) -> (T, B, output_size)."""
        y: Tensor = self.output(self.run(x))
        return y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: (B, I) -> (B, output_size) and the next state."""
        (y,), state = self.run_step(x, state)
        return y, state


class GaussianLSTM(RecurrentNet):
    """Posterior or prior: frame features (..., I) -> mu, logvar (..., z_dim) of a diagonal Gaussian."""

    def __init__(self, input_size: int, z_dim: int, hidden_size: int, n_layers: int) -> None:
        super().__init__(input_size, hidden_size, n_layers)
        self.mu_net = nn.Linear(hidden_size, z_dim)
        self.logvar_net = nn.Linear(hidden_size, z_dim)

    def heads(self) -> list[nn.Linear]:
        return [self.mu_net, self.logvar_net]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A whole sequence: (T, B, I) -> mu, logvar (T, B, z_dim)."""
        y = self.run(x)
        return self.mu_net(y), self.logvar_net(y)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One step: (B, I) -> mu, logvar (B, z_dim) and the next state."""
        (mu, logvar), state = self.run_step(x, state)
        return mu, logvar, state

    def sample_step(
        self, x: Tensor, state: State, *, seed: Tensor | None = None, eps: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One step: (B, I) -> a sample z (B, z_dim) and the next state; noise as in `ops.gaussian_rsample`."""
        (_, _, z), state = self.run_step(x, state, seed=seed, eps=eps)
        return z, state
