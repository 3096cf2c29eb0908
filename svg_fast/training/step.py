"""One training step that leaves the host out: its inputs wait on the device, and its losses stay there.

Nothing in it reads a value back, moves data or depends on Python's state, so on a GPU it can be one CUDA graph.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from .. import ops
from ..models import SVG, SVGOutput
from ..models.noise import draw_seed
from .averaging import Average
from .config import TrainConfig
from .processes import Part, Processes
from .schedules import Rates, free_kl

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Reduced while the backward pass goes on. PyTorch's size; from 5 to 50 it made no difference (docs/scale.md).
_BUCKET_MIB = 25
# PyTorch 2.13 has a new name for it, and a warning for the old one.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


class TrainingStep:
    """Forward, backward and optimizer: this process's frames (B, T, C, H, W) of a step, on the device -> loss, mse, kl.

    The losses (3,) stay on the device; over the processes, their mean is that over all clips of the step.
    """

    def __init__(
        self,
        model: SVG,
        optimizer: torch.optim.Optimizer,
        noise: torch.Generator | Tensor,
        training: TrainConfig,
        processes: Processes | None = None,
    ) -> None:
        """noise: a generator that every step draws a seed from, the same in all processes; or a (seed, offset) on the
        device, whose offset every step advances, so that the replays of a graph differ. Whoever trains calls
        `rates.set` before each step."""
        processes = processes or Processes()
        self.model, self.optimizer, self.training = model, optimizer, training
        self.processes, self.noise = processes, noise
        self.rates = Rates(training, model.config.beta, training.niter * training.epoch_size, optimizer)
        self.rates.set(1)
        self.average = Average(model) if training.ema else None
        self.parts = processes.parts(training.batch_size, training.accumulate)
        self.weight = model.frame_predictor.embed.weight
        device = self.weight.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=training.precision == "fp16")
        # the casts of the weights must not be kept from one step to the next, and a step uses each once
        dtype = _DTYPES[training.precision]
        self.autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32, cache_enabled=False)
        self.network = _distributed(model, training, processes)

    def __call__(self, frames: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part, clips, noise in zip(self.parts, self._split(frames), self._noise(frames), strict=True):
            with self._gradients_stay(part is not self.parts[-1]):
                with self.autocast:
                    out = self.network(clips, **noise)
                loss = out.mse + self.rates.beta * self._kl(out, part)
                self.scaler.scale(loss * part.weight if part.weight != 1 else loss).backward()
            losses.append(torch.stack((loss, out.mse, out.kl)).detach() * part.weight)
        self._advance()
        return torch.stack(losses).sum(0) if len(losses) > 1 else losses[0]

    def _split(self, frames: Tensor) -> list[Tensor]:
        return list(frames.split([part.last - part.first for part in self.parts]))

    def _noise(self, frames: Tensor) -> Iterator[dict[str, Any]]:
        """What the model's latents come from, for each part: the noise of a clip is the same whoever works it off."""
        if isinstance(self.noise, Tensor):
            seed = self.noise
        elif self.model.config.variant != "det":
            seed = draw_seed(self.noise, frames.device)
        if self.model.config.variant == "det":
            yield from ({} for _ in self.parts)
        elif self.processes.world_size == len(self.parts) == 1:
            yield {"seed": seed}
        else:
            shape = (frames.shape[1] - 1, self.training.batch_size, self.model.config.z_dim)
            zeros = torch.zeros(shape, dtype=self.weight.dtype, device=frames.device)
            eps = ops.gaussian_rsample(zeros, zeros, seed=seed)
            yield from ({"eps": eps[:, part.first : part.last].contiguous()} for part in self.parts)
        if isinstance(self.noise, Tensor):
            self.noise[1:].add_(1)

    def _kl(self, out: SVGOutput, part: Part) -> Tensor:
        """The KL that counts; with free bits there is one part, and they are of the KL over all processes."""
        free_bits = self.training.free_bits
        if not free_bits:
            return out.kl
        everywhere = self.processes.mean(out.kl_per_step.detach() * part.weight)
        return free_kl(out.kl_per_step, free_bits, everywhere)

    def _gradients_stay(self, stay: bool) -> AbstractContextManager[object]:
        """Gradients are averaged over the processes after the last part, all parts' sum at once."""
        if isinstance(self.network, FSDPModule):
            self.network.set_requires_gradient_sync(not stay)
        elif isinstance(self.network, DistributedDataParallel) and stay:
            return self.network.no_sync()
        return nullcontext()

    def _advance(self) -> None:
        if self.training.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.grad_clip, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.rates.ema_weight)


def _distributed(model: SVG, training: TrainConfig, processes: Processes) -> nn.Module:
    """The model as a step calls it."""
    if training.compile:
        model.compile()
    if processes.group is None or isinstance(model, FSDPModule):
        return model
    # a weight of one channel has a gradient whose strides differ where a dimension has size one, which is no difference
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    device = model.frame_predictor.embed.weight.device
    options: dict[str, Any] = {
        "device_ids": [device] if device.type == "cuda" else None,
        "gradient_as_bucket_view": True,
        "bucket_cap_mb": _BUCKET_MIB,
        _SYNC_BUFFERS: False,  # running statistics: rank 0's are saved, or all are the same
    }
    return DistributedDataParallel(model, **options)


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
