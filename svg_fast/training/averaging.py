"""An exponential moving average of a model's parameters, to evaluate with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The moving average of a model's parameters, float32 or wider, beside the model.

    BatchNorm's running statistics are no part of it: a model that is evaluated with the average keeps its own, which
    follow the last few batches anyway.
    """

    def __init__(self, model: nn.Module) -> None:
        """Begins at the parameters as they are. Wrappers that share them (DistributedDataParallel) change their names:
        give the model itself."""
        self.parameters = dict(model.named_parameters())
        self.average = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """average += weight * (parameters - average); weight () on their device.

        Nothing is read back: a CUDA graph may hold it, behind the optimizer's step.
        """
        averages = list(self.average.values())
        own = [p.to(average.dtype) for p, average in zip(self.parameters.values(), averages, strict=True)]
        # a list of weights: a lone tensor would be taken for a number, and be read back
        torch._foreach_lerp_(averages, own, [weight] * len(averages))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model has the averaged parameters, in place; at the end its own again, to the bit."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        _fill(self.parameters, self.average)
        try:
            yield
        finally:
            _fill(self.parameters, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the parameters' names; they are no copies."""
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over such averages, in place; ValueError for other names or shapes, before anything is changed."""
        if unlike := sorted(state.keys() ^ self.average.keys()):
            found = "none" if unlike[0] in self.average else "one"
            raise ValueError(f"there must be one average for each parameter, got {found} for {unlike[0]}")
        for name, average in self.average.items():
            if state[name].shape != average.shape:
                raise ValueError(f"{name} must have shape {list(average.shape)}, got {list(state[name].shape)}")
        _fill(self.average, state)


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
