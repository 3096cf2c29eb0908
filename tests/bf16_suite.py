"""bfloat16 autocast against float64 on a CPU; `test_gpu_model.py` runs this without AMX, of which some machines die."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracle import OracleSVG
from torch import Tensor, nn

from svg_fast import SVG, SVGConfig

UNIT = 2.0**-8  # distance of neighbouring bfloat16 numbers at 1; rounding errs by half of it


def run(model: nn.Module, dtype: torch.dtype, frames: Tensor, eps: Tensor) -> tuple[Any, Tensor]:
    """Results, and all gradients in one vector: in float64, or in float32 under autocast to bfloat16."""
    model = copy.deepcopy(model).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        out = model(frames.to(dtype), eps.to(dtype))
    out.loss.backward()
    return out, torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
def test_bfloat16_loses_no_more_than_it_must(backbone: Any) -> None:
    """Losses to a unit of bfloat16 though thousands of rounded numbers lead to them; the KL, a small difference of such
    numbers, too. Gradients as far from float64 as those of the published loop of stock modules under the same autocast:
    activations that round across LeakyReLU's kink, or to a tie in max pooling, send them elsewhere in both.
    """
    config = SVGConfig(backbone=backbone, nf=8, g_dim=16, z_dim=4, rnn_size=32, n_past=2, n_future=3)
    torch.manual_seed(0)
    model, oracle = SVG(config), OracleSVG(config)
    oracle.load_state_dict(model.state_dict())
    frames, eps = torch.rand(4, 5, 1, 64, 64), torch.randn(4, 4, 4)

    exact, exact_gradient = run(model, torch.float64, frames, eps)
    out, gradient = run(model, torch.float32, frames, eps)
    _, stock_gradient = run(oracle, torch.float32, frames, eps)
    for name in ("loss", "mse", "kl"):
        got, want = getattr(out, name), getattr(exact, name)
        assert got.dtype == torch.float32
        assert abs(float(got / want) - 1) < UNIT, name

    def error(of: Tensor) -> float:
        return float((of - exact_gradient).norm() / exact_gradient.norm())

    assert UNIT / 4 < error(gradient) < 1.25 * error(stock_gradient)  # the lower bound: autocast is at work
