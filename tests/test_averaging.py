"""The moving average of the parameters: against torch's own and closed forms; what evaluating with it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny_run import CONFIG
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from svg_fast import SVG
from svg_fast.training.averaging import Average
from svg_fast.training.schedules import Optimisation, ema_weight


@pytest.fixture
def model() -> SVG:
    torch.manual_seed(0)
    return SVG(CONFIG)


def move(model: nn.Module, step: int) -> None:
    """Change the parameters as training might."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_it_is_torchs(model: SVG) -> None:
    average = Average(model)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(1, 6):
        move(model, step)
        average.update(torch.tensor(1.0 if step == 1 else 1 - 0.9))  # torch's begins with a copy
        torchs.update_parameters(model)
    for name, parameter in torchs.module.named_parameters():
        torch.testing.assert_close(average.state_dict()[name], parameter.detach())


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_after_n_steps_it_is_the_weighted_sum(decay: float) -> None:
    """Step k weighs its own weight times the decays of all later steps; the initial parameters, all of them."""
    settings = Optimisation(ema=decay)
    layer = nn.Linear(3, 2).double()
    average = Average(layer)
    values = [layer.weight.detach().clone()]
    for step in range(1, 13):
        move(layer, step)
        values.append(layer.weight.detach().clone())
        average.update(torch.tensor(ema_weight(settings, step), dtype=torch.float64))
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(12)]
    weights = [math.prod(decays)] + [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(12)]
    assert sum(weights) == pytest.approx(1)
    wanted = sum((weight * value for weight, value in zip(weights, values, strict=True)), torch.zeros(()))
    torch.testing.assert_close(average.state_dict()["weight"], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32)],
    ids=str,
)
def test_it_is_kept_in_float32_or_wider(dtype: torch.dtype, kept: torch.dtype) -> None:
    layer = nn.Linear(3, 2).to(dtype)
    average = Average(layer)
    before, change = average.state_dict()["bias"].clone(), torch.tensor([1.0, -3.0], dtype=dtype)
    with torch.no_grad():
        layer.bias.copy_(change)
    average.update(torch.tensor(2**-12))  # bfloat16 would lose it
    found = average.state_dict()["bias"]
    assert found.dtype == kept
    torch.testing.assert_close(found, before + 2**-12 * (change.to(kept) - before))
    assert not torch.equal(found, before)
    with average.swapped_in():
        assert torch.equal(layer.bias, found.to(dtype))


def test_evaluating_with_it_and_back(model: SVG) -> None:
    average = Average(model)
    move(model, 1)
    average.update(torch.tensor(0.25))
    twin = SVG(CONFIG)
    twin.load_state_dict({**model.state_dict(), **average.state_dict()})  # the model's own running statistics
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = [parameter.data_ptr() for parameter in model.parameters()]
    frames, seed = torch.rand(2, 4, 1, 64, 64), torch.tensor((3, 0))
    model.eval()
    with average.swapped_in():
        assert torch.equal(model(frames, seed=seed).prediction, twin.eval()(frames, seed=seed).prediction)
        assert [parameter.data_ptr() for parameter in model.parameters()] == places  # where a graph reads them
    assert_same(model.state_dict(), own)
    assert not torch.equal(model(frames, seed=seed).prediction, twin(frames, seed=seed).prediction)


def test_an_exception_gives_the_parameters_back(model: SVG) -> None:
    average = Average(model)
    move(model, 1)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), average.swapped_in():
        fail()
    assert_same(model.state_dict(), own)


def test_resumed_it_goes_on_as_undisturbed(model: SVG) -> None:
    average = Average(model)
    move(model, 1)
    average.update(torch.tensor(0.5))
    saved = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    twin = SVG(CONFIG)
    twin.load_state_dict(model.state_dict())
    resumed = Average(twin)
    places = [tensor.data_ptr() for tensor in resumed.state_dict().values()]
    resumed.load_state_dict(saved)
    assert [tensor.data_ptr() for tensor in resumed.state_dict().values()] == places
    for net, its_average in ((model, average), (twin, resumed)):
        move(net, 2)
        its_average.update(torch.tensor(0.5))
    assert_same(resumed.state_dict(), average.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bias"), "one average for each parameter, got none for bias"),
        (lambda state: state.update(scale=torch.ones(1)), "one average for each parameter, got one for scale"),
        (lambda state: state.update(bias=torch.ones(1)), r"bias must have shape \[2\], got \[1\]"),
    ],
)
def test_averages_of_something_else(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    average = Average(nn.Linear(3, 2))
    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        average.load_state_dict(state)
    assert_same(average.state_dict(), before)


def test_an_update_reads_nothing_back(model: SVG) -> None:
    """On the meta device there is nothing to read: a CUDA graph could not have waited for it either."""
    average = Average(model.to("meta"))
    average.update(torch.ones((), device="meta"))
