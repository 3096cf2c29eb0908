"""LSTM ops against torch.nn's: a layer over 15 steps in training and inference, a stack's single step of a rollout.

A layer is one with its input projection, T = 15, I = H = 256: what `nn.LSTM` computes. The loop gets its inputs and
gives its outputs step by step, as the published code does, so that it pays for no stacking.
"""

from __future__ import annotations

from typing import Any

import op_oracles
import pytest
import torch.nn.functional as F
from calls import assert_right, holding, inference, leaf, training, wide
from measure import Race, flop
from test_ops import FLOAT32, evaluate, map_floating
from torch import Tensor, nn

from svg_fast import ops
from svg_fast.testing import Draw

T, H, LAYERS = 15, 256, 2


def cell_parameters(draw: Draw) -> list[Tensor]:
    """w_ih, w_hh (4H, H), b_ih, b_hh (4H,)."""
    return [draw(*shape, std=H**-0.5) for shape in ((4 * H, H), (4 * H, H), (4 * H,), (4 * H,))]


def layer(x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Any:
    return ops.lstm_layer(F.linear(x, w_ih, b_ih + b_hh), h0, c0, w_hh)[:1]


def oracle(x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Any:
    return op_oracles.lstm_layer(F.linear(x, w_ih, b_ih + b_hh), h0, c0, w_hh)[:1]


@pytest.mark.benchmark(group="lstm_layer")
@pytest.mark.parametrize("trained", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("batch", [16, 100], ids=lambda batch: f"B {batch}")
def test_lstm_layer(race: Race, batch: int, trained: bool) -> None:
    lstm_layer(race, T, batch, trained)


def lstm_layer(race: Race, n_steps: int, batch: int, trained: bool) -> None:
    draw = Draw(race.dtype, race.device)
    parameters = cell_parameters(draw)
    shape = (n_steps, batch, H)
    inputs, dy = [draw(*shape), draw(batch, H, std=0.5), draw(batch, H), *parameters], draw(*shape)
    x, h0, c0 = (leaf(tensor) for tensor in inputs[:3])
    own = [x, h0, c0, *map(leaf, parameters)]
    lstm, cell = (holding(module(H, H).to(x), *parameters) for module in (nn.LSTM, nn.LSTMCell))
    steps = [leaf(x_t) for x_t in x]

    def loop(steps: list[Tensor], h: Tensor, c: Tensor) -> list[Tensor]:
        outputs = []
        for x_t in steps:
            h, c = cell(x_t, (h, c))
            outputs.append(h)
        return outputs

    forwards: dict[str, Any] = {
        "ours": (lambda: layer(*own), own, [dy]),
        "nn.LSTM": (
            lambda: lstm(x, (h0.unsqueeze(0), c0.unsqueeze(0)))[:1],
            [x, h0, c0, *lstm.parameters()],
            [dy],
        ),
        "nn.LSTMCell": (lambda: loop(steps, h0, c0), [*steps, h0, c0, *cell.parameters()], list(dy)),
    }
    if compiled := race.compile(loop):
        forwards["torch.compile"] = (lambda: compiled(steps, h0, c0), *forwards["nn.LSTMCell"][1:])
    calls = {name: training(*call) if trained else inference(call[0]) for name, call in forwards.items()}
    ours = calls.pop("ours")

    def check() -> None:
        given = {str(k): wide(tensor) for k, tensor in enumerate(inputs)}
        want = evaluate(lambda **given: oracle(*given.values()), given, lambda _: [wide(dy)])
        assert_right(ours, calls.values(), want if trained else want[:1], race.tolerance(FLOAT32))

    work = flop(n_steps * batch * 4 * H * (H + H) * (3 if trained else 1))
    race(ours, calls, check=check, ops=["lstm_layer"], work=work)


@pytest.mark.benchmark(group="lstm_step")
@pytest.mark.parametrize("threads", [1], indirect=True, ids=["one thread"])
@pytest.mark.parametrize("batch", [1, 16, 100], ids=lambda batch: f"B {batch}")
def test_lstm_step(race: Race, batch: int) -> None:
    draw = Draw(race.dtype, race.device)
    layers = [cell_parameters(draw) for _ in range(LAYERS)]
    x, h, c = draw(batch, H), draw(LAYERS, batch, H, std=0.5), draw(LAYERS, batch, H)
    stacks = [list(stack) for stack in zip(*layers, strict=True)]
    cells = [holding(nn.LSTMCell(H, H).to(x), *parameters) for parameters in layers]
    states = list(zip(h, c, strict=True))

    def stack_of_cells(x: Tensor, states: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        following = []
        for cell, state in zip(cells, states, strict=True):
            following.append(cell(x, state))
            x = following[-1][0]
        return [tensor for column in zip(*following, strict=True) for tensor in column]

    ours = inference(lambda: ops.lstm_step(x, h, c, *stacks))
    peers = {"nn.LSTMCell": inference(lambda: stack_of_cells(x, states))}
    if compiled := race.compile(stack_of_cells):
        peers["torch.compile"] = inference(lambda: compiled(x, states))

    def check() -> None:
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        weights = {name: [wide(w) for w in stack] for name, stack in zip(names, stacks, strict=True)}
        want = op_oracles.lstm_step(wide(x), wide(h), wide(c), **weights)
        assert_right(ours, peers.values(), want, race.tolerance(FLOAT32))

    work = flop(LAYERS * batch * 4 * H * (H + H))
    race(ours, peers, check=check, ops=["lstm_step"], work=work)


@pytest.mark.benchmark(group="lstm_net_step")
@pytest.mark.parametrize("threads", [1], indirect=True, ids=["one thread"])
@pytest.mark.parametrize("batch", [1, 16, 100], ids=lambda batch: f"B {batch}")
def test_lstm_net_step(race: Race, batch: int) -> None:
    """The frame predictor: features and latent in, features out."""
    draw = Draw(race.dtype, race.device)
    inputs, outputs = 138, 128
    embed = [draw(H, inputs, std=inputs**-0.5), draw(H)]
    head = [draw(outputs, H, std=H**-0.5), draw(outputs)]
    layers = [cell_parameters(draw) for _ in range(LAYERS)]
    x, h, c = draw(batch, inputs), draw(LAYERS, batch, H, std=0.5), draw(LAYERS, batch, H)
    stacks = [list(stack) for stack in zip(*layers, strict=True)]
    cells = [holding(nn.LSTMCell(H, H).to(x), *parameters) for parameters in layers]

    def modules(x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        x = F.linear(x, *embed)
        states = []
        for k, cell in enumerate(cells):
            states.append(cell(x, (h[k], c[k])))
            x = states[-1][0]
        return [tensor for column in zip(*states, strict=True) for tensor in column] + [F.linear(x, *head).tanh()]

    weights: tuple[Any, ...] = (*embed, *stacks, *([tensor] for tensor in head))
    ours = inference(lambda: ops.lstm_net_step(x, h, c, *weights))
    peers = {"nn.LSTMCell": inference(lambda: modules(x, h, c))}
    if compiled := race.compile(modules):
        peers["torch.compile"] = inference(lambda: compiled(x, h, c))

    def check() -> None:
        names = ("w_embed", "b_embed", "w_ih", "w_hh", "b_ih", "b_hh", "w_head", "b_head")
        given = map_floating(dict(zip(names, weights, strict=True)), wide)
        want = op_oracles.lstm_net_step(wide(x), wide(h), wide(c), **given)
        assert_right(ours, peers.values(), want, race.tolerance(FLOAT32))

    work = flop(batch * (inputs * H + LAYERS * 4 * H * (H + H) + H * outputs))
    race(ours, peers, check=check, ops=["lstm_net_step"], work=work)
