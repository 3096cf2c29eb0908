"""The table of op cases that tests and benchmarks share: one row is one public op in one situation.

T steps, B batch, H hidden units, I inputs, L layers, O outputs, Z latent dimensions; G steps of N images, C channels;
S samples of N planes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]


def contiguous(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def transposed(x: Tensor) -> Tensor:
    """Dense, but with the first and last dimension the other way round in memory."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def spaced(x: Tensor) -> Tensor:
    """Every second element of its memory."""
    return x.repeat_interleave(2, dim=-1)[..., ::2]


@dataclass
class Draw:
    """Seeded normal tensors; the same numbers, rounded, in every dtype and on every device."""

    dtype: torch.dtype
    device: str | torch.device
    layout: Layout = contiguous

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        x = mean + std * torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.layout(x.to(self.device, self.dtype))


@dataclass(frozen=True)
class Case:
    """One op of `svg_fast.ops` in one situation; `make` draws the op's arguments, by name."""

    op: str
    situation: str
    make: Callable[[Draw], dict[str, Any]]
    layout: Layout = contiguous

    def __str__(self) -> str:
        return f"{self.op}-{self.situation}"

    def inputs(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> dict[str, Any]:
        return self.make(Draw(dtype, device, self.layout))


def _lstm_layer(T: int, B: int, H: int) -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: {
        "gates_x": draw(T, B, 4 * H),
        "h0": draw(B, H, std=0.5),
        "c0": draw(B, H),
        "w_hh": draw(4 * H, H, std=H**-0.5),
    }


def _lstm_step(L: int, B: int, I: int, H: int) -> Callable[[Draw], dict[str, Any]]:  # noqa: E741
    return lambda draw: {
        "x": draw(B, I),
        "h": draw(L, B, H, std=0.5),
        "c": draw(L, B, H),
        "w_ih": [draw(4 * H, width, std=width**-0.5) for width in [I] + [H] * (L - 1)],
        "w_hh": [draw(4 * H, H, std=H**-0.5) for _ in range(L)],
        "b_ih": [draw(4 * H, std=H**-0.5) for _ in range(L)],
        "b_hh": [draw(4 * H, std=H**-0.5) for _ in range(L)],
    }


def _lstm_net_step(
    *sizes: int, eps: bool = False, seed: int | None = None, heads: int = 2
) -> Callable[[Draw], dict[str, Any]]:
    """Sizes L, B, I, H, O; one head as the frame predictor has it, two as a posterior or prior; its noise, if any."""
    layers, batch, width, hidden, outputs = sizes

    def make(draw: Draw) -> dict[str, Any]:
        inputs = _lstm_step(layers, batch, hidden, hidden)(draw) | {"x": draw(batch, width)}
        inputs |= {"w_embed": draw(hidden, width, std=width**-0.5), "b_embed": draw(hidden)}
        inputs["w_head"] = [draw(outputs, hidden, std=hidden**-0.5) for _ in range(heads)]
        inputs["b_head"] = [draw(outputs) for _ in range(heads)]
        if eps:
            inputs["eps"] = draw(batch, outputs)
        return inputs if seed is None else inputs | {"seed": seed}

    return make


def _gaussian(
    *shape: int, prior: bool = False, eps: bool = False, seed: int | None = None
) -> Callable[[Draw], dict[str, Any]]:
    """Distributions whose scales lie within a factor of two or so of one."""

    def make(draw: Draw) -> dict[str, Any]:
        inputs: dict[str, Any] = {"mu": draw(*shape), "logvar": draw(*shape, std=0.7)}
        if prior:
            inputs |= {"mu_p": draw(*shape), "logvar_p": draw(*shape, std=0.7)}
        if eps:
            inputs["eps"] = draw(*shape)
        return inputs if seed is None else inputs | {"seed": seed}

    return make


def _frame_conv(
    N: int, weight: tuple[int, int, int], x: tuple[int, int, int], transposed: bool
) -> Callable[[Draw], dict[str, Any]]:
    """weight (D0, D1, k), x (C, H, W); an addend that two images share."""
    d0, d1, kernel = weight
    channels, height, width = x
    scale = 2 if kernel == 4 else 1
    size = (height * scale, width * scale) if transposed else (height // scale, width // scale)
    return lambda draw: {
        "x": draw(N, channels, height, width),
        "weight": draw(d0, d1, kernel, kernel, std=(channels * kernel**2) ** -0.5),
        "bias": draw(d1 if transposed else d0),
        "addend": draw(N // 2, d1 if transposed else d0, *size),
        "transposed": transposed,
    }


def _batch_norm_act(G: int, N: int, C: int, size: tuple[int, int], **options: Any) -> Callable[[Draw], dict[str, Any]]:
    """Channels off centre and not of unit variance, as a convolution's are."""
    return lambda draw: {
        "x": draw(G * N, C, *size, mean=0.3, std=1.5),
        "weight": draw(C, mean=1.0, std=0.2),
        "bias": draw(C, std=0.2),
        "steps": G,
        **options,
    }


def _running(G: int, C: int, repeats: tuple[int, ...], **options: float) -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: {
        "running_mean": draw(C),
        "running_var": draw(C).square() + 0.1,
        "mean": draw(G, C),
        "var": draw(G, C).square() + 0.1,
        "repeats": torch.tensor(repeats),
        **options,
    }


def _frame_scores(S: int, N: int, H: int, W: int) -> Callable[[Draw], dict[str, Any]]:
    """Pixels mostly in [0, 1]."""
    return lambda draw: {
        "prediction": draw(S, N, H, W, mean=0.5, std=0.2),
        "truth": draw(N, H, W, mean=0.5, std=0.2),
    }


_TBZ = {
    "ordinary": (5, 4, 10),
    "odd sizes": (3, 2, 7),
    "batch of one": (4, 1, 5),
    "one step": (1, 4, 10),
    "empty batch": (3, 0, 10),
    "no steps": (0, 4, 10),
    "large": (14, 100, 64),
}
_LAYOUTS = {"transposed": transposed, "spaced": spaced}

CASES = [
    *(
        Case("lstm_layer", situation, _lstm_layer(*sizes))
        for situation, sizes in {
            "ordinary": (5, 4, 16),
            "odd sizes": (3, 2, 3),
            "batch of one": (4, 1, 8),
            "one step": (1, 4, 8),
            "one unit": (3, 2, 1),
            "empty batch": (3, 0, 4),
            "no steps": (0, 2, 4),
            "large": (14, 64, 256),
        }.items()
    ),
    *(Case("lstm_layer", name, _lstm_layer(5, 4, 16), layout) for name, layout in _LAYOUTS.items()),
    *(
        Case("lstm_step", situation, _lstm_step(*sizes))
        for situation, sizes in {
            "ordinary": (2, 4, 10, 16),
            "odd sizes": (2, 3, 5, 3),
            "one layer": (1, 4, 10, 16),
            "batch of one": (2, 1, 10, 16),
            "empty batch": (2, 0, 10, 16),
            "large": (2, 100, 256, 256),
        }.items()
    ),
    *(Case("lstm_step", name, _lstm_step(2, 4, 10, 16), layout) for name, layout in _LAYOUTS.items()),
    *(
        Case("lstm_net_step", situation, make)
        for situation, make in {
            "ordinary": _lstm_net_step(2, 4, 10, 16, 6, eps=True),
            "odd sizes": _lstm_net_step(2, 3, 5, 3, 7, eps=True),
            "predictor": _lstm_net_step(2, 4, 10, 16, 12, heads=1),
            "posterior": _lstm_net_step(1, 4, 10, 16, 6),
            "seed": _lstm_net_step(1, 17, 10, 40, 6, seed=3),
            "batch of one": _lstm_net_step(2, 1, 10, 16, 6, eps=True),
            "empty batch": _lstm_net_step(2, 0, 10, 16, 6, eps=True),
            "large": _lstm_net_step(2, 100, 138, 256, 128, heads=1),
        }.items()
    ),
    *(
        Case("lstm_net_step", name, _lstm_net_step(2, 4, 10, 16, 6, eps=True), layout)
        for name, layout in _LAYOUTS.items()
    ),
    *(Case("gaussian_rsample", situation, _gaussian(*shape, eps=True)) for situation, shape in _TBZ.items()),
    *(Case("gaussian_rsample", name, _gaussian(5, 4, 10, eps=True), layout) for name, layout in _LAYOUTS.items()),
    Case("gaussian_rsample", "one number", _gaussian(eps=True)),
    Case("gaussian_rsample", "seed", _gaussian(5, 4, 10, seed=3)),
    Case("gaussian_rsample", "large, seed", _gaussian(14, 100, 64, seed=3)),
    *(Case("gaussian_kl", situation, _gaussian(*shape, prior=True)) for situation, shape in _TBZ.items()),
    *(Case("gaussian_kl", name, _gaussian(5, 4, 10, prior=True), layout) for name, layout in _LAYOUTS.items()),
    Case("gaussian_kl", "standard normal prior", _gaussian(5, 4, 10)),
    *(
        Case("gaussian_rsample_kl", situation, _gaussian(*shape, prior=True, eps=True))
        for situation, shape in _TBZ.items()
    ),
    *(
        Case("gaussian_rsample_kl", name, _gaussian(5, 4, 10, prior=True, eps=True), layout)
        for name, layout in _LAYOUTS.items()
    ),
    Case("gaussian_rsample_kl", "standard normal prior", _gaussian(5, 4, 10, eps=True)),
    Case("gaussian_rsample_kl", "seed", _gaussian(5, 4, 10, prior=True, seed=3)),
    Case("gaussian_rsample_kl", "transposed, seed", _gaussian(5, 4, 10, prior=True, seed=3), transposed),
    Case("gaussian_rsample_kl", "large, seed", _gaussian(14, 100, 64, prior=True, seed=3)),
    *(
        Case("batch_norm_act", f"{situation}, {layout.__name__}", make, layout)
        for situation, make in {
            "ordinary": _batch_norm_act(3, 4, 8, (6, 6)),
            "tanh": _batch_norm_act(3, 4, 8, (6, 6), activation="tanh"),
            "identity": _batch_norm_act(3, 4, 8, (6, 6), activation="identity"),
            "other constants": _batch_norm_act(3, 4, 8, (6, 6), negative_slope=0.0, eps=0.01),
            "odd sizes": _batch_norm_act(3, 2, 5, (3, 1)),
            "head, 1 x 1": _batch_norm_act(3, 4, 16, (1, 1), activation="tanh"),
            "one channel": _batch_norm_act(3, 4, 1, (6, 6)),
            "batch of one": _batch_norm_act(3, 1, 8, (6, 6)),
            "one step": _batch_norm_act(1, 4, 8, (6, 6)),
            "empty batch": _batch_norm_act(3, 0, 8, (6, 6)),
            "large": _batch_norm_act(14, 4, 32, (16, 16)),
        }.items()
        for layout in (contiguous, channels_last)
    ),
    *(Case("batch_norm_act", name, _batch_norm_act(3, 4, 8, (6, 6)), layout) for name, layout in _LAYOUTS.items()),
    # ATen's backward of maps of one pixel would read the weight as if it were contiguous.
    Case("batch_norm_act", "head, spaced", _batch_norm_act(3, 4, 16, (1, 1)), spaced),
    *(
        Case(
            "frame_conv",
            f"{situation}, {'transposed' if x[0] == weight[0] else 'plain'}",
            _frame_conv(2, weight, x, x[0] == weight[0]),
        )
        for situation, weight, xs in (
            ("4 x 4", (32, 16, 4), ((16, 4, 4), (32, 4, 4))),
            ("4 x 4, a frame", (16, 1, 4), ((1, 4, 4), (16, 4, 4))),
            ("3 x 3", (16, 32, 3), ((32, 4, 4), (16, 4, 4))),
            ("3 x 3, a frame", (16, 3, 3), ((3, 4, 4), (16, 4, 4))),
        )
        for x in xs
    ),
    *(
        Case("frame_scores", situation, _frame_scores(*sizes))
        for situation, sizes in {
            "ordinary": (3, 4, 12, 16),
            "odd sizes": (2, 3, 9, 43),
            "one window": (2, 3, 7, 7),
            "one sample": (1, 4, 13, 10),
            "no samples": (0, 4, 12, 16),
            "no planes": (3, 0, 12, 16),
            "tall": (2, 1, 400, 9),
            "large": (5, 6, 64, 64),
        }.items()
    ),
    *(Case("frame_scores", name, _frame_scores(3, 4, 12, 16), layout) for name, layout in _LAYOUTS.items()),
    Case("update_running_statistics", "ordinary", _running(5, 8, (1, 2, 2, 2, 1))),
    Case("update_running_statistics", "one step", _running(1, 8, (1,))),
    Case("update_running_statistics", "no steps", _running(0, 8, ())),
    Case("update_running_statistics", "a step not presented", _running(3, 8, (1, 0, 2))),
    Case("update_running_statistics", "momentum of one", _running(3, 8, (1, 2, 1), momentum=1.0)),
    Case("update_running_statistics", "large", _running(27, 512, (1, *(2,) * 25, 1))),
    *(
        Case("update_running_statistics", name, _running(5, 8, (1, 2, 2, 2, 1)), layout)
        for name, layout in _LAYOUTS.items()
    ),
]


def select(op: str | None = None, situation: str | None = None) -> list[Case]:
    """Rows of an op, of a situation, or both."""
    return [case for case in CASES if op in (None, case.op) and situation in (None, case.situation)]
