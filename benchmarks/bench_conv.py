"""Convolutions of the frame networks, forward, dX and dW of 20 images, against the better layout of each pass.

The peer is PyTorch (oneDNN): every pass is timed by itself with both layouts in memory, and the faster is taken, pass
by pass; no network could have all of them at once without copies. Ours is the op as it is used, autograd and all: with
the weight's packing in every call, and with it done before, as the model does once for all its chunks of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from calls import leaf, training
from measure import Race, Run, flop
from torch import Tensor

from svg_fast import ops
from svg_fast.models.frame_network import channels_last
from svg_fast.ops.frame_conv import prepare_conv
from svg_fast.testing import Draw, contiguous

IMAGES = 20
LAYOUTS = {"NCHW": contiguous, "NHWC": channels_last}
BOUND = 3e-6  # relative to the norm of the float64 result, as in test_frame_conv.py


class Layer(NamedTuple):
    """4x4 with stride 2, or 3x3 with stride 1; size is the input's height and width."""

    c_in: int
    c_out: int
    size: int
    transposed: bool = False
    kernel: int = 4

    def __str__(self) -> str:
        words = f"{self.kernel}x{self.kernel}, {self.c_in} to {self.c_out}, {self.size} to {self.size_out}"
        return words + ", transposed" * self.transposed

    @property
    def stride(self) -> int:
        return 2 if self.kernel == 4 else 1

    @property
    def size_out(self) -> int:
        return self.size * self.stride if self.transposed else self.size // self.stride

    @property
    def multiply_adds(self) -> int:
        """Of one direct pass: each position of the smaller map meets a kernel for each pair of channels."""
        return IMAGES * min(self.size, self.size_out) ** 2 * self.kernel**2 * self.c_in * self.c_out


SIX = [
    Layer(64, 128, 32),
    Layer(128, 256, 16),
    Layer(256, 512, 8),
    Layer(512, 256, 4, transposed=True),
    Layer(256, 128, 8, transposed=True),
    Layer(128, 64, 16, transposed=True),
]
THIN = [Layer(1, 64, 64), Layer(64, 1, 32, transposed=True)]
VGG = [Layer(channels, channels, size, kernel=3) for channels, size in ((64, 64), (128, 32), (256, 16), (512, 8))]


class LayerCalls:
    """One layer's work as ours and as the peer's passes, over the same numbers."""

    def __init__(self, layer: Layer, packed_before: bool) -> None:
        self.layer = layer
        draw = Draw(torch.float32, "cpu")
        channels = (layer.c_in, layer.c_out) if layer.transposed else (layer.c_out, layer.c_in)
        self.x = draw(IMAGES, layer.c_in, layer.size, layer.size)
        self.weight = draw(*channels, layer.kernel, layer.kernel, std=(layer.kernel**2 * layer.c_in) ** -0.5)
        self.dy = draw(IMAGES, layer.c_out, layer.size_out, layer.size_out)
        self.ours = self._ours(packed_before)

    def _ours(self, packed_before: bool) -> Run:
        transposed = self.layer.transposed
        x, weight = leaf(channels_last(self.x)), leaf(self.weight)
        given = prepare_conv(weight, transposed=transposed) if packed_before else weight
        return training(
            lambda: [ops.frame_conv(x, given, transposed=transposed)], [x, weight], [channels_last(self.dy)]
        )

    def _forward(self, x: Tensor, weight: Tensor) -> Tensor:
        convolve = F.conv_transpose2d if self.layer.transposed else F.conv2d
        return convolve(x, weight, stride=self.layer.stride, padding=1)

    def peer(self) -> list[Mapping[str, Run]]:
        """Forward, dX and dW, each in both layouts."""
        forms = {name: self._passes(*map(layout, (self.x, self.weight, self.dy))) for name, layout in LAYOUTS.items()}
        return [{name: passes[k] for name, passes in forms.items()} for k in range(3)]

    def _passes(self, x: Tensor, weight: Tensor, dy: Tensor) -> list[Run]:
        geometry = ([self.layer.stride] * 2, [1, 1], [1, 1], self.layer.transposed, [0, 0], 1)

        def backward(*mask: bool) -> Run:
            return lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, list(mask))

        return [lambda: self._forward(x, weight), backward(True, False, False), backward(False, True, False)]

    def check(self) -> None:
        x, weight = leaf(self.x.double()), leaf(self.weight.double())
        want = training(lambda: [self._forward(x, weight)], [x, weight], [self.dy.double()])()
        got: Any = self.ours()
        for a, b in zip(got, want, strict=True):
            error, scale = (a.detach() - b.detach()).norm(), b.detach().norm()
            assert error <= BOUND * scale, f"{self.layer}: error {error:.2e} of {scale:.2e}"


def race_layers(race: Race, layers: list[Layer], packed_before: bool = False) -> None:
    calls = [LayerCalls(layer, packed_before) for layer in layers]

    def ours() -> None:
        for call in calls:
            call.ours()

    def check() -> None:
        for call in calls:
            call.check()

    work = flop(3 * sum(layer.multiply_adds for layer in layers), of_peer=True)  # Winograd needs fewer
    passes = [forms for call in calls for forms in call.peer()]
    race(ours, {"oneDNN, better layouts": passes}, check=check, ops=["frame_conv"], work=work)


@pytest.mark.benchmark(group="frame_conv")
@pytest.mark.parametrize("layer", [*SIX, *THIN, *VGG], ids=str)
def test_layer(race: Race, layer: Layer) -> None:
    race_layers(race, [layer])


@pytest.mark.benchmark(group="frame_conv")
@pytest.mark.parametrize("packed_before", [False, True], ids=["six 4x4 layers", "six 4x4 layers, packed before"])
def test_six_layers(race: Race, packed_before: bool) -> None:
    race_layers(race, SIX, packed_before)
