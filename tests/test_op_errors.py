"""Wrong use of an op says what was wanted and what came, and never reaches a kernel."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch

from svg_fast import ops
from svg_fast.testing import select

DEFAULTS: dict[str, dict[str, Any]] = {
    "lstm_layer": select("lstm_layer", "odd sizes")[0].inputs(),  # T 3, B 2, H 3
    "lstm_step": select("lstm_step", "odd sizes")[0].inputs(),  # L 2, B 3, I 5, H 3
    "lstm_net_step": select("lstm_net_step", "odd sizes")[0].inputs(),  # L 2, B 3, I 5, H 3, O 7
    "gaussian_rsample": select("gaussian_rsample", "seed")[0].inputs(),  # T 5, B 4, Z 10
    "gaussian_kl": select("gaussian_kl", "odd sizes")[0].inputs(),  # T 3, B 2, Z 7
    "gaussian_rsample_kl": select("gaussian_rsample_kl", "odd sizes")[0].inputs(),
    "batch_norm_act": select("batch_norm_act", "odd sizes, contiguous")[0].inputs(),  # G 3, N 2, C 5, 3 x 1
    "frame_scores": select("frame_scores", "odd sizes")[0].inputs(),  # S 2, N 3, 9 x 43
    "update_running_statistics": select("update_running_statistics", "ordinary")[0].inputs(),  # G 5, C 8
}


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


W_IH, W_HH, B = [zeros(12, 5), zeros(12, 3)], [zeros(12, 3)] * 2, [zeros(12)] * 2
INT = torch.int64
GRADIENT = zeros(5, 4, 10).requires_grad_()

WRONG: dict[str, list[tuple[dict[str, Any], type[Exception], str]]] = {
    "lstm_layer": [
        (
            {"gates_x": zeros(3, 2, 12, dtype=INT)},
            TypeError,
            "gates_x must be a floating-point tensor, got torch.int64",
        ),
        ({"gates_x": zeros(3, 12)}, ValueError, "gates_x must have 3 dimensions (T, B, 4H), got shape [3, 12]"),
        ({"gates_x": zeros(3, 2, 10)}, ValueError, "four gates of equal width, got a last dimension of 10"),
        ({"h0": zeros(3, 3)}, ValueError, "h0 must have shape [2, 3], got [3, 3]"),
        ({"h0": zeros(2, 3, device="meta")}, ValueError, "h0 must be on cpu like the first argument, got meta"),
        ({"c0": zeros(2, 4)}, ValueError, "c0 must have shape [2, 3], got [2, 4]"),
        ({"c0": zeros(2, 3, dtype=INT)}, TypeError, "c0 must be a floating-point tensor, got torch.int64"),
        ({"w_hh": zeros(3, 12)}, ValueError, "w_hh must have shape [12, 3], got [3, 12]"),
    ],
    "lstm_step": [
        ({"x": zeros(3, 5, dtype=INT)}, TypeError, "x must be a floating-point tensor, got torch.int64"),
        ({"x": zeros(1, 3, 5)}, ValueError, "x must have 2 dimensions (B, I), got shape [1, 3, 5]"),
        ({"h": zeros(3, 3)}, ValueError, "h must have 3 dimensions (L, B, H), got shape [3, 3]"),
        ({"h": zeros(2, 4, 3)}, ValueError, "h must have shape [2, 3, 3], got [2, 4, 3]"),
        ({"h": zeros(0, 3, 3)}, ValueError, "w_ih must hold one tensor for each layer of h (0, at least 1), got 2"),
        ({"c": zeros(2, 4, 3)}, ValueError, "c must have shape [2, 3, 3], got [2, 4, 3]"),
        ({"w_ih": W_IH[:1]}, ValueError, "w_ih must hold one tensor for each layer of h (2, at least 1), got 1"),
        ({"w_ih": W_IH[::-1]}, ValueError, "w_ih[0] must have shape [12, 5], got [12, 3]"),
        ({"w_hh": [W_HH[0], W_IH[0]]}, ValueError, "w_hh[1] must have shape [12, 3], got [12, 5]"),
        ({"b_ih": [B[0], B[0].to(INT)]}, TypeError, "b_ih[1] must be a floating-point tensor, got torch.int64"),
        ({"b_hh": [B[0], zeros(3)]}, ValueError, "b_hh[1] must have shape [12], got [3]"),
    ],
    "lstm_net_step": [
        ({"x": zeros(3, 5, dtype=INT)}, TypeError, "x must be a floating-point tensor, got torch.int64"),
        ({"x": zeros(3)}, ValueError, "x must have 2 dimensions (B, I), got shape [3]"),
        ({"c": zeros(2, 4, 3)}, ValueError, "c must have shape [2, 3, 3], got [2, 4, 3]"),
        ({"w_embed": zeros(3, 4)}, ValueError, "w_embed must have shape [3, 5], got [3, 4]"),
        ({"b_embed": zeros(5)}, ValueError, "b_embed must have shape [3], got [5]"),
        ({"w_ih": W_IH}, ValueError, "w_ih[0] must have shape [12, 3], got [12, 5]"),
        ({"w_head": [zeros(7, 3)] * 3}, ValueError, "w_head must hold one tensor for each head (1 or 2), got 3"),
        ({"b_head": [zeros(7)]}, ValueError, "b_head must hold one tensor for each head (1 or 2), got 1"),
        ({"w_head": [zeros(7, 3), zeros(6, 3)]}, ValueError, "w_head[1] must have shape [7, 3], got [6, 3]"),
        ({"w_head": [zeros(7)] * 2}, ValueError, "w_head[0] must have 2 dimensions (O, H), got shape [7]"),
        ({"w_head": zeros(7, 3), "b_head": 1.0}, ValueError, "w_head must hold one tensor for each head"),
        ({"seed": 1}, ValueError, "give seed or eps, not both"),
        ({"eps": zeros(7)}, ValueError, "eps must have shape [3, 7], got [7]"),
        ({"w_head": [zeros(7, 3)], "b_head": [zeros(7)]}, ValueError, "they need two heads, mu and logvar, got 1"),
    ],
    "gaussian_rsample": [
        ({"mu": zeros(5, 4, 10, dtype=INT)}, TypeError, "mu must be a floating-point tensor, got torch.int64"),
        ({"logvar": zeros(5, 4, 10, dtype=INT)}, TypeError, "logvar must be a floating-point tensor"),
        ({"logvar": zeros(5, 4)}, ValueError, "logvar must have shape [5, 4, 10], got [5, 4]"),
        ({"eps": zeros(5, 4, 10)}, ValueError, "give seed or eps, not both"),
        ({"seed": None, "eps": zeros(10)}, ValueError, "eps must have shape [5, 4, 10], got [10]"),
        ({"seed": None, "eps": zeros(5, 4, 10, dtype=INT)}, TypeError, "eps must be a floating-point tensor"),
        ({"seed": None, "eps": GRADIENT}, ValueError, "eps must be noise without a gradient"),
        ({"seed": -1}, ValueError, "seed must be in [0, 2**63), got -1"),
        ({"seed": 2**63}, ValueError, f"seed must be in [0, 2**63), got {2**63}"),
        ({"seed": 0.5}, TypeError, "seed must be an int or an int64 tensor of (seed, offset), got float"),
        ({"seed": zeros(3, dtype=INT)}, ValueError, "seed must have shape [2], got [3]"),
        ({"seed": zeros(2)}, TypeError, "seed must be an int64 tensor of (seed, offset), got torch.float32"),
    ],
    "gaussian_kl": [
        ({"mu": zeros(3, 2, 7, dtype=INT)}, TypeError, "mu must be a floating-point tensor, got torch.int64"),
        ({"mu": zeros(2, 7)}, ValueError, "mu must have 3 dimensions (T, B, Z), got shape [2, 7]"),
        ({"logvar": zeros(3, 2, 6)}, ValueError, "logvar must have shape [3, 2, 7], got [3, 2, 6]"),
        ({"mu_p": None}, ValueError, "give both mu_p and logvar_p for a learned prior, or neither"),
        ({"mu_p": zeros(4, 2, 7)}, ValueError, "mu_p must have shape [3, 2, 7], got [4, 2, 7]"),
        (
            {"logvar_p": zeros(3, 2, 7, device="meta")},
            ValueError,
            "logvar_p must be on cpu like the first argument, got meta",
        ),
    ],
    "gaussian_rsample_kl": [
        ({"eps": zeros(7)}, ValueError, "eps must have shape [3, 2, 7], got [7]"),
        ({"logvar_p": None}, ValueError, "give both mu_p and logvar_p for a learned prior, or neither"),
    ],
    "batch_norm_act": [
        ({"x": zeros(6, 5, 3, 1, dtype=INT)}, TypeError, "x must be a floating-point tensor, got torch.int64"),
        ({"x": zeros(6, 5)}, ValueError, "x must have 4 dimensions (G * N, C, H, W), got shape [6, 5]"),
        ({"weight": zeros(4)}, ValueError, "weight must have shape [5], got [4]"),
        ({"bias": zeros(5, dtype=INT)}, TypeError, "bias must be a floating-point tensor, got torch.int64"),
        ({"activation": "relu"}, ValueError, "activation must be one of leaky_relu, tanh, identity, got 'relu'"),
        ({"steps": 4}, ValueError, "dimension 0 of x must be a multiple of steps, got 6 images for 4 steps"),
        ({"steps": 0}, ValueError, "dimension 0 of x must be a multiple of steps, got 6 images for 0 steps"),
        ({"negative_slope": -0.2}, ValueError, "negative_slope must not be negative, got -0.2"),
        ({"x": zeros(3, 5, 1, 1)}, ValueError, "more than one value per channel, got one image of 1 x 1"),
    ],
    "frame_scores": [
        ({"prediction": zeros(2, 3, 9, 43, dtype=INT)}, TypeError, "prediction must be a floating-point tensor"),
        ({"prediction": zeros(3, 9, 43)}, ValueError, "prediction must have 4 dimensions (S, N, H, W), got shape ["),
        ({"truth": zeros(2, 9, 43)}, ValueError, "truth must have shape [3, 9, 43], got [2, 9, 43]"),
        ({"truth": zeros(3, 9, 43, dtype=INT)}, TypeError, "truth must be a floating-point tensor, got torch.int64"),
        ({"truth": zeros(3, 9, 43, device="meta")}, ValueError, "truth must be on cpu like the first argument, got"),
    ],
    "update_running_statistics": [
        ({"mean": zeros(5, 8, dtype=INT)}, TypeError, "mean must be a floating-point tensor"),
        ({"mean": zeros(8)}, ValueError, "mean must have 2 dimensions (G, C), got shape [8]"),
        ({"var": zeros(8)}, ValueError, "var must have shape [5, 8], got [8]"),
        ({"running_mean": zeros(1)}, ValueError, "running_mean must have shape [8], got [1]"),
        ({"running_var": zeros(8, dtype=INT)}, TypeError, "running_var must be a floating-point tensor"),
        ({"repeats": zeros(1)}, ValueError, "repeats must have shape [5], got [1]"),
        ({"repeats": zeros(5, dtype=torch.complex64)}, TypeError, "repeats must be real counts, got torch.complex64"),
        ({"repeats": zeros(5, device="meta")}, ValueError, "repeats must be on the CPU, got meta"),
        ({"momentum": 1.5}, ValueError, "momentum must be in [0, 1], got 1.5"),
    ],
}


ROWS = [(op, *row) for op, rows in WRONG.items() for row in rows]


@pytest.mark.parametrize(("op", "changes", "error", "message"), ROWS, ids=[f"{row[0]}-{row[3][:40]}" for row in ROWS])
def test_wrong_use(op: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        getattr(ops, op)(**{**DEFAULTS[op], **changes})
    assert message in str(caught.value)


def spoil(value: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Another shape, or a dtype that is not floating point."""
    if rng.random() < 0.3:
        return value.to(rng.choice([torch.int64, torch.bool, torch.complex64, torch.uint8]))
    shape = list(value.shape)
    change = rng.choice(["grow", "shrink", "drop", "add", "swap"])
    k = rng.randrange(len(shape))
    if change == "grow":
        shape[k] += rng.choice([1, 2, 7])
    elif change == "shrink":
        shape[k] = 0 if rng.random() < 0.3 else shape[k] - 1
    elif change == "drop":
        del shape[k]
    elif change == "add":
        shape.insert(k, rng.choice([0, 1, 3]))
    else:
        rng.shuffle(shape)
    return torch.zeros(shape, dtype=value.dtype)


def attempt(op: str, inputs: dict[str, Any]) -> ValueError | TypeError | list[torch.Tensor]:
    try:
        result = getattr(ops, op)(**inputs)
    except (ValueError, TypeError) as error:
        return error
    return [result] if isinstance(result, torch.Tensor) else list(result or ())


@pytest.mark.parametrize("op", DEFAULTS)
def test_random_wrong_tensors_raise_value_or_type_errors(op: str) -> None:
    """One argument at a time; some changes are still right (another T), and must then give finite results."""
    rng = random.Random(0)
    for _ in range(300):
        inputs = dict(DEFAULTS[op])
        name = rng.choice([n for n, v in inputs.items() if isinstance(v, (torch.Tensor, list))])
        if isinstance(inputs[name], list):
            k = rng.randrange(len(inputs[name]))
            inputs[name] = [spoil(w, rng) if j == k else w for j, w in enumerate(inputs[name])]
        else:
            inputs[name] = spoil(inputs[name], rng)
        result = attempt(op, inputs)
        if isinstance(result, Exception):
            assert re.search("must|need", str(result)), result  # ours, not one of Python's or PyTorch's own
        else:
            assert all(y.isfinite().all() for y in result)


def test_every_op_has_its_wrong_uses() -> None:
    elsewhere = {"frame_conv", "moving_mnist_clips"}  # in files of their own
    assert set(DEFAULTS) == set(WRONG) == set(ops.__all__) - elsewhere
