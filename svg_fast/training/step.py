"""One training step that leaves the host out: its inputs wait on the device, and its losses stay there.

Nothing in it reads a value back, moves data or depends on Python's state, so on a GPU it can be one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..models import SVG


class TrainingStep:
    """Forward, backward and optimizer: frames (B, T, C, H, W) on the device -> loss, mse, kl (3,) there."""

    def __init__(
        self, model: SVG, optimizer: torch.optim.Optimizer, noise: torch.Generator | Tensor, bf16: bool
    ) -> None:
        """noise: a generator that every step draws a seed from; or a (seed, offset) on the device, whose offset every
        step advances, so that the replays of a graph differ. bf16: autocast to bfloat16."""
        self.model, self.optimizer = model, optimizer
        self.noise: Any = noise
        self.counts = isinstance(noise, Tensor)
        device = model.frame_predictor.embed.weight.device.type
        # the casts of the weights must not be kept from one step to the next, and a step uses each once
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False)

    def __call__(self, frames: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            out = self.model(frames, **{"seed" if self.counts else "generator": self.noise})
        out.loss.backward()
        self.optimizer.step()
        if self.counts:
            self.noise[1:].add_(1)
        return torch.stack((out.loss, out.mse, out.kl)).detach()


def noise_on_device(seed: int, step: int, device: torch.device) -> Tensor:
    """(seed, offset) int64 of the steps after `step`: a function of the run's seed and the step alone."""
    drawn = torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(seed))
    return torch.cat((drawn, torch.tensor([step]))).to(device)


def on_device(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The batches on the device. A GPU gets the next one while it works on the last: by a stream of its own.

    A batch is made and sent when it is asked for. That is early enough, since a step's launch returns at once.
    """
    if device.type != "cuda":
        yield from (frames.to(device) for frames in batches)
        return
    stream = torch.cuda.Stream(device)
    for frames in batches:
        with torch.cuda.stream(stream):
            sent = frames.pin_memory().to(device, non_blocking=True)
        here = torch.cuda.current_stream(device)
        here.wait_stream(stream)
        sent.record_stream(here)  # its memory belongs to the other stream, which must not use it again too early
        yield sent
