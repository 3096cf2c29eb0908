"""The future steps of a rollout, over tensors that stay where they are: one CUDA graph on a GPU.

S samples of B clips in one batch of S * B rows, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..graphs import Graphed
from .frame_network import Weights, channels_last
from .recurrent import State

if TYPE_CHECKING:
    from .svg import SVG


@dataclass
class Start:
    """What the frames so far leave behind, and the prepared weights.

    h (S * B, g_dim): features of the last frame, which the next step starts from; predictor: its state after the step
    before; prior: likewise, None where z is not drawn from a learned prior; halves: the skips' halves of the decoder's
    joining convolutions, of B clips, or of S * B where each sample has its own.
    """

    h: Tensor
    predictor: State
    prior: State | None
    halves: list[Tensor]
    encoder_weights: Weights
    decoder_weights: Weights

    def tensors(self) -> list[Tensor]:
        prepared = (conv for weights in (self.encoder_weights, self.decoder_weights) for conv in weights.values())
        flat = (tensor for conv in prepared for tensor in conv.tensors())
        return [self.h, *self.predictor, *(self.prior or ()), *self.halves, *flat]

    def repeated(self, n_samples: int, own_skips: bool) -> Start:
        """One sample's start as that of many; own_skips: each is to have skips of its own."""
        return Start(
            self.h.repeat(n_samples, 1),
            repeated(self.predictor, n_samples),
            None if self.prior is None else repeated(self.prior, n_samples),
            [half.repeat(n_samples, 1, 1, 1) for half in self.halves] if own_skips else self.halves,
            self.encoder_weights,
            self.decoder_weights,
        )


def repeated(state: State, n_samples: int) -> State:
    """A net's state (L, B, H) for each of S samples, (L, S * B, H)."""
    h, c = (part.repeat(1, n_samples, 1) for part in state)
    return h, c


class FutureStep:
    """One future step: encode the last frame, find z, predict the next features, decode them to the next frame.

    `frame`, `z`, states and skip halves are read and left behind in the same memory at every call, and nothing is read
    back by the host, so that a CUDA graph of a call can be replayed.
    """

    def __init__(self, model: SVG, n_samples: int, batch_statistics: bool, start: Start) -> None:
        # not the model itself, which may go while this is kept for its next rollouts
        self.encoder, self.decoder, self.predictor = model.encoder, model.decoder, model.frame_predictor
        self.prior = None if start.prior is None else model.prior
        self.keeps_skips = not model.config.last_frame_skip
        self.n_samples, self.batch_statistics = n_samples, batch_statistics
        self.now = start
        self.z: Tensor | None = None  # of the last step
        self.frame: Tensor | None = None

    def begin(self, start: Start, noise: Tensor) -> Tensor:
        """The first future frame (S * B, C, H, W); noise as for a call."""
        if start is not self.now:
            for own, given in zip(self.now.tensors(), start.tensors(), strict=True):
                own.copy_(given)
        frame = self._predict(noise)
        self.frame = channels_last(frame) if self.frame is None else self.frame.copy_(frame)
        return self.frame

    def __call__(self, noise: Tensor) -> Tensor:
        """The next frame (S * B, C, H, W), overwritten by the next call.

        noise (S * B, z_dim): that of the learned prior's sample, or where that is not drawn from, z itself.
        """
        assert self.frame is not None
        with _own_casts(self.frame.device.type):
            self.look()
            return self.frame.copy_(self._predict(noise))

    def look(self) -> Start:
        """Encode the last frame: from here on another step may go on, too."""
        assert self.frame is not None
        now = self.now
        wanted = 0 if self.keeps_skips else None
        h, skips, _ = self.encoder.encode(
            self.frame, now.encoder_weights, self.n_samples, self.batch_statistics, wanted
        )
        now.h.copy_(h)
        if skips:
            torch._foreach_copy_(now.halves, self.decoder.skip_halves(skips, now.decoder_weights))
        return now

    def _predict(self, noise: Tensor) -> Tensor:
        now, states, after, z = self.now, [*self.now.predictor], [], noise
        if self.prior is not None:
            assert now.prior is not None
            z, prior = self.prior.sample_step(now.h, now.prior, eps=noise)
            states, after = [*states, *now.prior], [*prior]
        self.z = z.clone() if self.z is None else self.z.copy_(z)
        predicted, predictor = self.predictor.step(torch.cat((now.h, z), dim=-1), now.predictor)
        torch._foreach_copy_(states, [*predictor, *after])
        frame, _ = self.decoder.decode(
            predicted, now.halves, now.decoder_weights, self.n_samples, self.batch_statistics
        )
        return frame


def _own_casts(device: str) -> AbstractContextManager[None]:
    """Autocast as it is, but no parameter's cast is taken from its cache: that memory goes when autocast ends, and a
    graph that read it would be replayed on what is there then."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    casts: AbstractContextManager[None] = torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)
    return casts


# Of each model the last future step and what it was made for: a graph holds on to the memory of a step.
_kept: WeakKeyDictionary[SVG, tuple[Hashable, FutureStep, Graphed[Tensor]]] = WeakKeyDictionary()


def future_step(
    model: SVG, n_samples: int, batch_statistics: bool, start: Start, *, cuda_graph: bool
) -> tuple[FutureStep, Callable[..., Tensor]]:
    """A step for these rollouts and how to call it: on a GPU as a CUDA graph, unless that is not wanted.

    The graph is that of the model's last rollouts, where theirs were alike and all tensors still lie where they did.
    """
    device = start.h.device
    if not cuda_graph or not Graphed.records(device):
        step = FutureStep(model, n_samples, batch_statistics, start)
        return step, step
    where = tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))
    shapes = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in start.tensors())
    modes = (
        torch.is_autocast_enabled(device.type),
        torch.get_autocast_dtype(device.type),
        torch.is_inference_mode_enabled(),  # tensors made in it may not be written to outside
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.get_float32_matmul_precision(),
        torch.cuda.current_stream(device).cuda_stream,
    )
    key = (model.config, n_samples, batch_statistics, start.prior is None, modes, shapes, where)
    kept = _kept.get(model)
    if kept is None or kept[0] != key:
        # halves of its own: those of the start serve further samples, after what others may leave in here
        start = replace(start, halves=[half.clone() for half in start.halves])
        step = FutureStep(model, n_samples, batch_statistics, start)
        kept = _kept[model] = (key, step, Graphed(step, device, "a rollout's future step"))
    return kept[1:]
