"""A stand-in for a CUDA graph on CPU tensors: records the operators of a call, and replays them on the same memory.

As under a real capture, what is recorded leaves no trace in memory until it is replayed, and what Python or a random
generator gave is part of the record: a function that is not fit to be captured replays to wrong numbers here too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svg_fast.graphs import Graphed


def tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def written(operator: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call changes, by its schema."""
    given = dict(zip((argument.name for argument in operator._schema.arguments), arguments, strict=False)) | options
    return tensors([given.get(a.name) for a in operator._schema.arguments if a.alias_info and a.alias_info.is_write])


class RecordedGraph(TorchDispatchMode):
    """The part of `torch.cuda.CUDAGraph` that is used, and the recording mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # what was in memory that the recording wrote to
        self.own: set[int] = set()  # storages that the recording allocated

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if torch.Tag.nondeterministic_seeded in operator.tags or "_local_scalar_dense" in operator.name():
            raise RuntimeError(f"operation not permitted when stream is capturing: {operator}")
        for tensor in written(operator, arguments, options):
            key = tensor.untyped_storage().data_ptr()
            if key not in self.own:
                self.before.setdefault(key, (tensor, tensor.detach().clone()))
        result = operator(*arguments, **options)
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors(arguments, options)}
        self.own |= {tensor.untyped_storage().data_ptr() for tensor in tensors(result)} - given
        self.calls.append((operator, arguments, options, result))
        return result

    @torch.no_grad()
    def end(self) -> None:
        for tensor, value in self.before.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for operator, arguments, options, result in self.calls:
            again = operator(*arguments, **options)
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class Stream:
    cuda_stream = 0

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


@contextlib.contextmanager
def recording(graph: RecordedGraph, stream: Any) -> Iterator[None]:
    try:
        with graph:
            yield
    finally:
        graph.end()


def use_recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every `Graphed` take the CPU for a GPU, and record there."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(Graphed, "records", staticmethod(lambda device: True))
