"""How an op is declared: schema, reference kernel, shape function and gradient, once, in Python.

The PyTorch dispatcher is the registry. The reference is the default kernel of every device; a compiled or Triton
kernel attaches itself to its device's dispatch key when its library loads, and takes over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_LIBRARY = torch.library.Library("svg_fast", "DEF")

REFERENCE_KERNELS: dict[str, Callable[..., Any]] = {}


def _outside_autocast(reference: Callable[..., Any]) -> Callable[..., Any]:
    """An op computes in its own precision; autocast would reach through it to the matrix products inside."""

    @functools.wraps(reference)
    def kernel(*arguments: Any) -> Any:
        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        with torch.autocast(device.type, enabled=False):
            return reference(*arguments)

    return kernel


def _on_one_side(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """One meta tensor among real ones leads to the shape function, whose real results would be memory as it was."""

    @functools.wraps(fake)
    def shapes(*arguments: Any) -> Any:
        is_meta = {tensor.is_meta for tensor in tree_leaves(arguments) if isinstance(tensor, Tensor)}
        if len(is_meta) > 1:
            raise ValueError(f"the tensors of {name} must all be on the meta device, or none of them")
        return fake(*arguments)

    return shapes


def declare(schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define `svg_fast::<schema>` with its default kernel and shape function; returns the op to call."""
    name = _LIBRARY.define(schema)
    REFERENCE_KERNELS[name] = _outside_autocast(reference)
    _LIBRARY.impl(name, REFERENCE_KERNELS[name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"svg_fast::{name}", _on_one_side(name, fake), lib=_LIBRARY)
    return getattr(torch.ops.svg_fast, name).default


def refuse_gradient(name: str, why: str) -> None:
    """Let a backward pass through the declared op `name` raise an error that tells why.

    Without this PyTorch would take the op's results for constants, with a warning.
    """

    def refuse(_ctx: Any, *_gradients: Any) -> None:
        raise RuntimeError(why)

    torch.library.register_autograd(f"svg_fast::{name}", refuse, lib=_LIBRARY)


def differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> Callable[..., Any]:
    """Give the declared op `name` its gradient (see `torch.library.register_autograd`); returns it for eager calls.

    To a registered gradient a call passes from Python to C++ and back three times, some 20 microseconds. What is
    returned goes straight into an autograd function of the same parts; torch.compile and torch.func take the
    registered one.
    """
    torch.library.register_autograd(f"svg_fast::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    refuse_gradient(
        f"{name.removesuffix('_fwd')}_bwd",
        "the ops of svg_fast can be differentiated once: a gradient of their gradient is not to be had",
    )
    op = getattr(torch.ops.svg_fast, name).default

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    def backward_once(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted, which the backward op refuses
            return backward(ctx, *gradients)
        with torch._C._AutoDispatchBelowAutograd():
            return backward(ctx, *gradients)

    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward_once)}
    function: Any = type(name, (torch.autograd.Function,), parts)

    def call(*inputs: Any) -> Any:
        registered = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        return op(*inputs) if registered else function.apply(*inputs)

    return call
