"""4x4 stride-2 convolutions of dcgan64, forward, dX and dW of 20 images, against the better layout of each pass.

The peer is PyTorch (oneDNN): every pass is timed by itself with both layouts in memory, and the faster is taken, pass
by pass; no network could have all of them at once without copies. Ours is the op as it is used, autograd and all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from calls import assert_right, leaf, rounding, training
from measure import Race, Run, flop
from test_ops import evaluate
from torch import Tensor

from svg_fast import ops
from svg_fast.models.frame_network import channels_last
from svg_fast.testing import Draw, contiguous

IMAGES = 20
LAYOUTS = {"NCHW": contiguous, "NHWC": channels_last}
GEOMETRY: dict[str, Any] = {"stride": 2, "padding": 1}


class Layer(NamedTuple):
    c_in: int
    c_out: int
    size: int  # of the input: height and width
    transposed: bool

    def __str__(self) -> str:
        to = self.size * 2 if self.transposed else self.size // 2
        return f"{self.c_in} to {self.c_out} at {self.size} to {to}{', transposed' if self.transposed else ''}"

    @property
    def multiply_adds(self) -> int:
        """Of one pass over all images: each position of the smaller map meets 4x4 weights of each pair of channels."""
        smaller = self.size if self.transposed else self.size // 2
        return IMAGES * smaller * smaller * 16 * self.c_in * self.c_out

    @property
    def longest_sum(self) -> int:
        return max(16 * self.c_in, 16 * self.c_out, IMAGES * self.size**2)


SIX = [
    Layer(64, 128, 32, False),
    Layer(128, 256, 16, False),
    Layer(256, 512, 8, False),
    Layer(512, 256, 4, True),
    Layer(256, 128, 8, True),
    Layer(128, 64, 16, True),
]
THIN = [Layer(1, 64, 64, False), Layer(64, 1, 32, True)]


class LayerCalls:
    """One layer's work as ours and as the peer's passes, over the same numbers."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        draw = Draw(torch.float32, "cpu")
        channels = (layer.c_in, layer.c_out) if layer.transposed else (layer.c_out, layer.c_in)
        self.x = draw(IMAGES, layer.c_in, layer.size, layer.size)
        self.weight = draw(*channels, 4, 4, std=(16 * layer.c_in) ** -0.5)
        self.forward: Callable[..., Tensor] = F.conv_transpose2d if layer.transposed else F.conv2d
        self.dy = draw(*self.forward(self.x, self.weight, **GEOMETRY).shape)
        x, weight = leaf(channels_last(self.x)), leaf(self.weight)
        conv4x4 = getattr(ops, "conv4x4", None)
        if conv4x4 is None:
            pytest.skip("svg_fast.ops has no conv4x4")
        self.ours = training(
            lambda: [conv4x4(x, weight, transposed=layer.transposed)], [x, weight], [channels_last(self.dy)]
        )

    def peer(self) -> list[Mapping[str, Run]]:
        """Forward, dX and dW, each in both layouts."""
        forms = {name: self._passes(*map(layout, (self.x, self.weight, self.dy))) for name, layout in LAYOUTS.items()}
        return [{name: passes[k] for name, passes in forms.items()} for k in range(3)]

    def _passes(self, x: Tensor, weight: Tensor, dy: Tensor) -> list[Run]:
        def backward(*mask: bool) -> Run:
            geometry = ([2, 2], [1, 1], [1, 1], self.layer.transposed, [0, 0], 1)
            return lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, list(mask))

        return [
            lambda: self.forward(x, weight, **GEOMETRY),
            backward(True, False, False),
            backward(False, True, False),
        ]

    def check(self) -> None:
        want = evaluate(
            lambda x, weight: [self.forward(x, weight, **GEOMETRY)],
            {"x": self.x.double(), "weight": self.weight.double()},
            lambda _: [self.dy.double()],
        )
        assert_right(self.ours, [], want, rounding(self.layer.longest_sum))


def race_layers(race: Race, layers: list[Layer]) -> None:
    calls = [LayerCalls(layer) for layer in layers]

    def ours() -> None:
        for call in calls:
            call.ours()

    def check() -> None:
        for call in calls:
            call.check()

    work = flop(3 * sum(layer.multiply_adds for layer in layers), of_peer=True)  # an op may need fewer
    passes = [forms for call in calls for forms in call.peer()]
    race(ours, {"oneDNN, better layouts": passes}, check=check, ops=["conv4x4"], work=work)


@pytest.mark.benchmark(group="conv4x4")
@pytest.mark.parametrize("layer", [*SIX, *THIN], ids=str)
def test_layer(race: Race, layer: Layer) -> None:
    race_layers(race, [layer])


@pytest.mark.benchmark(group="conv4x4")
def test_six_layers(race: Race) -> None:
    race_layers(race, SIX)
