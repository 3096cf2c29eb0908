"""`batch_norm_act`, forward and backward, on the shapes of dcgan64, and the running statistics that follow.

G = 3 steps of N = 20 images, as many as the model takes at once at the paper's settings. The peer that works per time
step gets and gives its steps one by one, as the published loop does, and pays for no copy; like ours it keeps no
running statistics here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import op_oracles
import pytest
import torch
import torch.nn.functional as F
from calls import assert_right, holding, leaf, rounding, training
from measure import Race, traffic
from test_ops import FLOAT32, call, evaluate
from torch import Tensor, nn

from svg_fast import ops
from svg_fast.ops.batch_norm_act import Activation
from svg_fast.testing import Draw, Layout, channels_last, contiguous, select

G, N, SLOPE = 3, 20, 0.2
KINK = 1e-4  # in float32; nothing comes so near to LeakyReLU's kink, where rounding alone would change a gradient


class Shape(NamedTuple):
    channels: int
    size: int  # height and width
    activation: Activation = "leaky_relu"
    layout: Layout = channels_last

    def __str__(self) -> str:
        return f"{self.channels} at {self.size}x{self.size}, {self.activation}, {self.layout.__name__}"


# the encoder's maps, which are the decoder's too, as the model lays them out; one the other way; the encoder's head
SHAPES = [
    *(Shape(channels, size) for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4))),
    Shape(64, 32, layout=contiguous),
    Shape(128, 1, activation="tanh"),
]


def grouped(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, activation: str, groups: tuple[int, int]
) -> list[Tensor]:
    """All steps at once, in eager operations."""
    steps = x.unflatten(0, groups)
    var, mean = torch.var_mean(steps, (1, 3, 4), correction=0, keepdim=True)
    scale = weight.view(-1, 1, 1) * (var + eps).rsqrt()
    y = (steps * scale + (bias.view(-1, 1, 1) - mean * scale)).flatten(0, 1)
    return [(torch.tanh(y) if activation == "tanh" else F.leaky_relu_(y, SLOPE)).to(x)]


def off_the_kink(x: Tensor, weight: Tensor, bias: Tensor, steps: int, kink: float) -> Tensor:
    """x with the few elements moved that would be activated near zero; statistics stay to within rounding."""
    z, _, var = op_oracles.batch_norm_act(x.double(), weight.double(), bias.double(), steps, activation="identity")
    step = 2 * kink * (var.sqrt() / weight).repeat_interleave(len(x) // steps, dim=0)[..., None, None]
    return torch.where(z.abs() < kink, x + step, x).to(x)


@pytest.mark.benchmark(group="batch_norm_act")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_act(race: Race, shape: Shape) -> None:
    batch_norm_act(race, shape, G, N)


def batch_norm_act(race: Race, shape: Shape, n_steps: int, batch: int) -> None:
    channels, size, activation, layout = shape
    draw = Draw(race.dtype, race.device, layout)
    weight, bias = (x.float() for x in (draw(channels, mean=1.0, std=0.2), draw(channels, std=0.2)))
    x = draw(n_steps * batch, channels, size, size, mean=0.3, std=1.5)
    x = layout(off_the_kink(x, weight, bias, n_steps, race.tolerance(KINK)))
    dy = draw(*x.shape)
    own_x, own_weight, own_bias = leaves = [leaf(tensor) for tensor in (x, weight, bias)]
    steps = [leaf(x_t) for x_t in x.chunk(n_steps)]
    norm = holding(nn.BatchNorm2d(channels, track_running_stats=False).to(race.device), weight, bias)
    act = nn.Tanh() if activation == "tanh" else nn.LeakyReLU(SLOPE, inplace=True)
    module = nn.Sequential(norm, act)

    def per_step(steps: Sequence[Tensor]) -> list[Tensor]:
        return [module(x_t) for x_t in steps]

    step_arguments = ([*steps, *norm.parameters()], dy.chunk(n_steps))
    options: dict[str, Any] = {"steps": n_steps, "activation": activation, "negative_slope": SLOPE}
    groups = (n_steps, batch)
    ours = training(lambda: ops.batch_norm_act(own_x, own_weight, own_bias, **options)[:1], leaves, [dy])
    peers = {
        "eager, per step": training(lambda: per_step(steps), *step_arguments),
        "eager, batched": training(
            lambda: grouped(own_x, own_weight, own_bias, norm.eps, activation, groups), leaves, [dy]
        ),
    }
    if compiled := race.compile(per_step):
        peers["torch.compile"] = training(lambda: compiled(steps), *step_arguments)

    def check() -> None:
        want = evaluate(
            lambda **given: op_oracles.batch_norm_act(**given, steps=n_steps, activation=activation)[:1],
            {"x": x.double().contiguous(), "weight": weight.double(), "bias": bias.double()},
            lambda _: [dy.double()],
        )
        assert_right(ours, peers.values(), want, race.tolerance(rounding(n_steps * batch * size * size)))

    work = traffic((2 + 3) * x.numel())  # x to y, then dy and x to dx
    race(ours, peers, check=check, ops=["batch_norm_act"], work=work)


@pytest.mark.benchmark(group="update_running_statistics")
def test_update_running_statistics(race: Race) -> None:
    """Of all steps of a clip at once, against the published updates one after another."""
    inputs = select("update_running_statistics", "large")[0].inputs()
    counts, momentum = inputs["repeats"].tolist(), 0.1

    def one_by_one(given: dict[str, Any]) -> list[Tensor]:
        running_mean, running_var = given["running_mean"], given["running_var"]
        for mean, var, times in zip(given["mean"], given["var"], counts, strict=True):
            for _ in range(times):
                running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
                running_var.mul_(1 - momentum).add_(var, alpha=momentum)
        return [running_mean, running_var]

    def fresh() -> dict[str, Any]:
        return {name: tensor.clone() for name, tensor in inputs.items()}

    def check() -> None:
        wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
        want = op_oracles.update_running_statistics(**wide)
        ours = call("update_running_statistics")
        assert_right(lambda: ours(**fresh()), [lambda: one_by_one(fresh())], want, FLOAT32)

    own, other = fresh(), fresh()
    race(
        lambda: ops.update_running_statistics(**own),
        {"eager, per step": lambda: one_by_one(other)},
        check=check,
        ops=["update_running_statistics"],
    )
