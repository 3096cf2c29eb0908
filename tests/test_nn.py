"""svg_fast.nn against torch.nn, in float64: results, gradients, parameters, and the errors of wrong use."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import svg_fast

T, B, I, H = 5, 3, 4, 7  # noqa: E741

State = tuple[Tensor, Tensor]
OPTIONS: list[dict[str, Any]] = [
    dict(zip(("num_layers", "bias", "batch_first", "bidirectional"), values, strict=True))
    for values in itertools.product((1, 3), (True, False), (False, True), (False, True))
]


def draw(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def pair(**options: Any) -> tuple[svg_fast.nn.LSTM, nn.LSTM]:
    """Ours and torch's, with equal parameters."""
    torch.manual_seed(0)
    ours = svg_fast.nn.LSTM(I, H, dtype=torch.float64, **options)
    theirs = nn.LSTM(I, H, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def states(module: nn.RNNBase, *batch: int) -> State:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    return draw(rows, *batch, H, seed=1), draw(rows, *batch, H, seed=2)


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors of a module's results that carry a gradient, in order."""
    if isinstance(outputs, PackedSequence):
        return [outputs.data]
    return [outputs] if isinstance(outputs, Tensor) else [x for output in outputs for x in tensors(output)]


def evaluate(module: Any, inputs: tuple[Any, ...], leaves: Iterable[Tensor]) -> list[Tensor]:
    """Results, then the gradients of a fixed random combination of them."""
    outputs = tensors(module(*inputs))
    cotangents = [draw(*y.shape, seed=10 + k, grad=False) for k, y in enumerate(outputs)]
    wanted = [*leaves, *module.parameters()]
    return [y.detach() for y in outputs] + list(torch.autograd.grad(outputs, wanted, cotangents, retain_graph=True))


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def assert_same(ours: Any, theirs: Any, inputs: tuple[Any, ...], leaves: Iterable[Tensor]) -> None:
    leaves = list(leaves)
    assert_close(evaluate(ours, inputs, leaves), evaluate(theirs, inputs, leaves))


@pytest.mark.parametrize("given", [False, True], ids=["hx=None", "hx"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_lstm(options: dict[str, Any], given: bool) -> None:
    ours, theirs = pair(**options)
    x = draw(*((B, T) if options["batch_first"] else (T, B)), I)
    hx = states(ours, B) if given else None
    assert_same(ours, theirs, (x, hx), [x, *(hx or ())])


@pytest.mark.parametrize("given", [False, True], ids=["hx=None", "hx"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_lstm_of_one_sequence_without_a_batch(options: dict[str, Any], given: bool) -> None:
    ours, theirs = pair(**options)
    x = draw(T, I)
    hx = states(ours) if given else None
    assert_same(ours, theirs, (x, hx), [x, *(hx or ())])


@pytest.mark.parametrize("given", [False, True], ids=["hx=None", "hx"])
@pytest.mark.parametrize("in_order", [False, True], ids=["any order", "longest first"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_lstm_of_packed_sequences(options: dict[str, Any], in_order: bool, given: bool) -> None:
    ours, theirs = pair(**options)
    x = draw(T, B, I)
    lengths = torch.tensor([5, 2, 1] if in_order else [2, 5, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=in_order)
    hx = states(ours, B) if given else None
    got, want = ours(packed, hx)[0], theirs(packed, hx)[0]
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(got, field), getattr(want, field)
        assert (a is None and b is None) or torch.equal(a, b)
    assert_same(ours, theirs, (packed, hx), [x, *(hx or ())])


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_draws_what_torch_draws(packed: bool) -> None:
    ours, theirs = pair(num_layers=3, dropout=0.4, bidirectional=True)
    sequences = [draw(n, I, seed=n, grad=False) for n in (5, 3, 3)]
    x = pack_sequence(sequences) if packed else torch.stack([sequences[0]] * B, dim=1)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        results.append(tensors(module(x)))
    assert_close(*results)
    quiet = [tensors(module.eval()(x)) for module in (ours, theirs)]
    assert_close(*quiet)
    assert not torch.allclose(quiet[0][0], results[0][0])


@pytest.mark.parametrize("batch", [(), (B,), (0,)], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["hx=None", "hx"])
@pytest.mark.parametrize("bias", [False, True])
def test_cell(bias: bool, given: bool, batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours = svg_fast.nn.LSTMCell(I, H, bias, dtype=torch.float64)
    theirs = nn.LSTMCell(I, H, bias, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = draw(*batch, I)
    hx = (draw(*batch, H, seed=1), draw(*batch, H, seed=2)) if given else None
    assert_same(ours, theirs, (x, hx), [x, *(hx or ())])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_are_torchs(options: dict[str, Any]) -> None:
    """The same names, shapes and, from one seed, numbers; each loads the other's."""
    made = []
    for kind in (svg_fast.nn.LSTM, nn.LSTM):
        torch.manual_seed(0)
        made.append(kind(I, H, **options))
    ours, theirs = made
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_cell_parameters_are_torchs() -> None:
    made = []
    for kind in (svg_fast.nn.LSTMCell, nn.LSTMCell):
        torch.manual_seed(0)
        made.append(kind(I, H).state_dict())
    assert list(made[0]) == list(made[1])
    assert all(torch.equal(a, b) for a, b in zip(made[0].values(), made[1].values(), strict=True))


def test_device_and_dtype() -> None:
    assert svg_fast.nn.LSTM(I, H, device="meta").weight_hh_l0.is_meta
    assert svg_fast.nn.LSTMCell(I, H, dtype=torch.bfloat16).weight_hh.dtype == torch.bfloat16
    y, (h, c) = svg_fast.nn.LSTM(I, H, dtype=torch.bfloat16)(torch.randn(T, B, I, dtype=torch.bfloat16))
    assert {y.dtype, h.dtype, c.dtype} == {torch.bfloat16}


def test_autocast_gives_the_dtypes_that_torch_gives() -> None:
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in ((svg_fast.nn.LSTM, nn.LSTM), (svg_fast.nn.LSTMCell, nn.LSTMCell)):
            steps = x if ours is svg_fast.nn.LSTM else x[0]
            got, want = tensors(ours(I, H)(steps)), tensors(theirs(I, H)(steps))
            assert [y.dtype for y in got] == [y.dtype for y in want]


def test_compiles_whole() -> None:
    """Alone and inside another module, which torch.nn.LSTM does not."""
    torch.compiler.reset()
    ours, _ = pair(num_layers=2)
    model = nn.Sequential(nn.Linear(I, I, dtype=torch.float64), ours)
    x = draw(T, B, I)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(compiled, model, (x,), [x])
    cell = svg_fast.nn.LSTMCell(I, H, dtype=torch.float64)
    assert_same(torch.compile(cell, fullgraph=True, backend="aot_eager"), cell, (x[0],), [x])


def test_copies_and_pickles() -> None:
    ours, _ = pair(num_layers=2)
    x = draw(T, B, I)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x)[0], ours(x)[0])


def test_a_gradient_of_the_gradient_is_refused() -> None:
    ours, _ = pair()
    (gradient,) = torch.autograd.grad(ours(draw(T, B, I))[0].sum(), [ours.all_weights[0][1]], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        gradient.sum().backward()


LAYER, CELL = svg_fast.nn.LSTM(I, H, 2), svg_fast.nn.LSTMCell(I, H)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: svg_fast.nn.LSTM(I, H, proj_size=3), ValueError, "proj_size must be 0 here, got 3"),
        (lambda: svg_fast.nn.LSTM(I, 0), ValueError, "hidden_size must be greater than zero"),
        (lambda: LAYER(torch.zeros(I)), ValueError, "Expected input to be 2D or 3D, got 1D"),
        (lambda: LAYER(torch.zeros(T, B, H)), RuntimeError, "Expected 4, got 7"),
        (lambda: LAYER(torch.zeros(T, B, I).double()), ValueError, "does not match weight dtype"),
        (lambda: LAYER(torch.zeros(0, B, I)), RuntimeError, "Expected sequence length to be larger than 0"),
        (lambda: LAYER(torch.zeros(T, B, I), (torch.zeros(B, H),) * 2), RuntimeError, "hx and cx should be 3-D"),
        (
            lambda: LAYER(torch.zeros(T, B, I), (torch.zeros(2, B, H), torch.zeros(2, 1, H))),
            RuntimeError,
            "Expected hidden[1] size (2, 3, 7), got [2, 1, 7]",
        ),
        (lambda: CELL(torch.zeros(T, B, I)), ValueError, "Expected input to be 1D or 2D, got 3D"),
        (lambda: CELL(torch.zeros(B, H)), ValueError, "w_ih[0] must have shape [28, 7], got [28, 4]"),
        (lambda: CELL(torch.zeros(B, I), (torch.zeros(1, H),) * 2), ValueError, "h must have shape [1, 3, 7]"),
    ],
)
def test_wrong_use(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
