"""CUDA graphs: a function of tensors of fixed shapes, recorded once and from then on launched as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger("svg_fast")

Result = TypeVar("Result")

WARM_UP = 3  # calls before capture: libraries choose their kernels, workspaces and lazy states are allocated


class Graphed(Generic[Result]):
    """A function of tensors that come in the same shapes every time; on a GPU, one CUDA graph.

    A replay repeats what was recorded, the same kernels on the same memory, without Python and with one launch. So
    `function` may read and change tensors that it keeps, but what it asks Python or the CPU is answered once and for
    all, and it must neither read a value back nor move data. Whatever its result holds must not require a gradient.

    The first `WARM_UP` calls are plain ones on the graph's stream. They count, so that a function with a memory, a
    training step say, needs no rehearsal that would have to be undone. The next call runs the function's Python once
    more, to record, and all further ones only replay. Inputs are copied into the graph's own; its result is
    overwritten by the next call.

    On any other device, and where capture fails (which is said once, with the reason), every call is a plain one.
    """

    def __init__(self, function: Callable[..., Result], device: torch.device, name: str = "") -> None:
        """`name` is what the log calls the function."""
        self.function = function
        self.device = device
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.plain = not self.records(device)
        self.calls = 0  # before capture
        self.inputs: list[Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    @staticmethod
    def records(device: torch.device) -> bool:
        """Whether calls on the device can become a graph."""
        return device.type == "cuda"

    def __call__(self, *inputs: Tensor) -> Result:
        """The function's result; ValueError for inputs unlike the first ones in shape, dtype or device."""
        if self.plain:
            return self.function(*inputs)
        self._take(inputs)
        if self.graph is None:
            if self.calls < WARM_UP:
                return self._warm_up()
            self._capture()
        if self.graph is None:
            return self.function(*self.inputs)
        self.graph.replay()
        return self.result

    def _take(self, inputs: Sequence[Tensor]) -> None:
        if not self.calls:
            self.inputs = [torch.empty_like(tensor, device=self.device, requires_grad=False) for tensor in inputs]
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{self.name} must get {len(self.inputs)} inputs as before, got {len(inputs)}")
        for k, (own, given) in enumerate(zip(self.inputs, inputs, strict=True)):
            if (own.shape, own.dtype, own.device) != (given.shape, given.dtype, given.device):
                raise ValueError(f"input {k} of {self.name} must be {_described(own)}, got {_described(given)}")
            own.copy_(given)

    def _warm_up(self) -> Result:
        if not self.calls:
            self.stream = torch.cuda.Stream(self.device)
        self.calls += 1
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = self.function(*self.inputs)
        here.wait_stream(self.stream)
        return result

    def _capture(self) -> None:
        """Record the function; where that cannot be, say why and leave it plain."""
        graph = torch.cuda.CUDAGraph()
        try:
            # the outer block leads back to the caller's stream: that of a failed capture would stay the current one
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, stream=self.stream):
                self.result = self.function(*self.inputs)
        except RuntimeError as error:
            reason = error.__context__ or error  # the end of a capture fails too, and says less
            logger.warning("%s runs without a CUDA graph, which could not be captured: %s", self.name, reason)
            self.plain = True
        else:
            self.graph = graph


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
