"""A look at every operator of a training step on fake CUDA tensors: what would stall a GPU or spoil a CUDA graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svg_fast import SVG, SVGConfig
from svg_fast.training import TrainConfig
from svg_fast.training.step import TrainingStep

CUDA = torch.device("cuda", 0)
BATCH = 4

# Of the operators that make or take activations: the place of the activation, or of its gradient, in their results.
ACTIVATIONS = {
    "aten::convolution": 0,
    "aten::convolution_backward": 0,
    "svg_fast::batch_norm_act_fwd": 0,
    "svg_fast::batch_norm_act_bwd": 0,
    "aten::max_pool2d_with_indices": 0,
    "aten::max_pool2d_with_indices_backward": 0,
    "aten::upsample_nearest2d": 0,
    "aten::upsample_nearest2d_backward": 0,
    "aten::sigmoid": 0,
}
# Of the operators whose results or arguments must stay float32: which of them.
WIDE_RESULTS = {
    "svg_fast::lstm_layer_fwd": ("c", "gates"),
    "svg_fast::batch_norm_act_fwd": ("mean", "var"),
    "svg_fast::batch_norm_act_bwd": ("dweight", "dbias"),
    "svg_fast::gaussian_rsample_kl_fwd": ("kl",),
    "aten::mean": (0,),
    "aten::sigmoid": (0,),
}
WIDE_ARGUMENTS = {
    "svg_fast::lstm_layer_fwd": ("h0", "c0"),
    "svg_fast::batch_norm_act_fwd": ("weight", "bias"),
    "svg_fast::batch_norm_act_bwd": ("weight", "bias", "mean", "var"),
    "aten::_fused_adam_": ("self", "grads", "exp_avgs", "exp_avg_sqs", "state_steps"),
}
PRODUCTS = ("aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm")


class Stall(RuntimeError):  # noqa: N818 (it says what is the matter)
    """An operator that waits for the device, or brings something to it or from it."""


class Call(NamedTuple):
    operator: Any
    arguments: dict[str, Any]
    results: tuple[Any, ...]


def tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Watch(TorchDispatchMode):
    """Keeps all calls, and raises at one that a captured step must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if operator.namespace in ("prim", "profiler"):
            return operator(*arguments, **options)
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operator.tags):
            raise Stall(f"{operator} reads a value back")
        result = operator(*arguments, **options)
        elsewhere = {str(tensor.device) for tensor in tensors(arguments, options, result)} - {str(CUDA)}
        if elsewhere:
            raise Stall(f"{operator} has a tensor on {', '.join(elsewhere)}")
        names = (argument.name for argument in operator._schema.arguments)
        given = dict(zip(names, arguments, strict=False)) | options
        self.calls.append(Call(operator, given, tuple(result) if isinstance(result, tuple | list) else (result,)))
        return result

    def of(self, *names: str) -> list[Call]:
        return [call for call in self.calls if call.operator.name().split(".")[0] in names]

    def wrong_layouts(self) -> list[str]:
        """Activations of several rows and columns that do not have their channels last."""
        wrong = []
        for call in self.of(*ACTIVATIONS):
            x = call.results[ACTIVATIONS[call.operator.name().split(".")[0]]]
            if x is not None and x.dim() == 4 and not x.is_contiguous(memory_format=torch.channels_last):
                wrong.append(f"{call.operator}: {list(x.shape)}, {x.stride()}")
        return wrong

    def narrow(self) -> list[str]:
        """What should be float32 and is not."""
        wrong = []
        for call in self.of(*WIDE_RESULTS, *WIDE_ARGUMENTS):
            name = call.operator.name().split(".")[0]
            places = [r.name for r in call.operator._schema.returns]
            results = [call.results[p if isinstance(p, int) else places.index(p)] for p in WIDE_RESULTS.get(name, ())]
            arguments = [call.arguments[argument] for argument in WIDE_ARGUMENTS.get(name, ())]
            wrong += [f"{call.operator}: {x.dtype}" for x in tensors(results, arguments) if x.dtype != torch.float32]
        return wrong


class Count(TorchDispatchMode):
    """How often operators are called that do more than to allocate or to look at memory differently.

    It keeps no results: a gradient that someone else holds is copied where it is accumulated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in operator._schema.returns)
        idle = view or "empty" in operator.name() or operator.namespace in ("prim", "profiler")
        if not idle and operator.name() != "aten::_unsafe_view":
            self.calls[operator.name()] += 1
        return operator(*arguments, **(options or {}))


# PyTorch has no shape function for Adam whose learning rate is a tensor: it works in place and gives nothing back.
_ADAM = torch.library.Library("aten", "IMPL")
_ADAM.impl("_fused_adam_.tensor_lr", lambda *_, **__: None, "Meta")


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors on "cuda" have shapes, dtypes and strides, but no memory; autocast believes in the device."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    with FakeTensorMode(), torch.device(CUDA):
        yield


def make_step(config: SVGConfig, bf16: bool) -> TrainingStep:
    model = SVG(config)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, fused=True, capturable=True)
    training = TrainConfig(batch_size=BATCH, precision="bf16" if bf16 else "float32")
    return TrainingStep(model, optimizer, torch.zeros(2, dtype=torch.int64), training)


def make_frames(config: SVGConfig) -> Tensor:
    size = config.image_size
    shape = (BATCH, config.n_past + config.n_future, config.channels, size, size)
    return torch.zeros(shape, dtype=torch.uint8)


def watch_step(config: SVGConfig, bf16: bool) -> tuple[Watch, Tensor, TrainingStep]:
    """The second step, for which Adam's state is there: what was called, its losses, and the step."""
    step, frames = make_step(config, bf16), make_frames(config)
    step(frames)
    with Watch() as watch:
        losses = step(frames)
    return watch, losses, step
