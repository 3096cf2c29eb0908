"""The future steps of a rollout, over tensors that stay where they are: one CUDA graph on a GPU.

S samples of B clips in one batch of S * B rows, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import ops
from ..graphs import Graphed
from .frame_network import Weights, channels_last
from .recurrent import State

if TYPE_CHECKING:
    from .svg import SVG


@dataclass
class Start:
    """What the conditioning frames leave behind, and the prepared weights.

    predictor, prior: states after the last conditioning step, the prior's in SVG-LP only; halves: the skips' halves of
    the decoder's joining convolutions; seed (2,): (seed, offset) of the next step's noise on the model's device, None
    where the caller gives noise.
    """

    predictor: State
    prior: State | None
    halves: list[Tensor]
    seed: Tensor | None
    encoder_weights: Weights
    decoder_weights: Weights

    def tensors(self) -> list[Tensor]:
        prepared = (weight for weights in (self.encoder_weights, self.decoder_weights) for weight in weights.values())
        flat = (tensor for parts in prepared for part in parts for tensor in (part.weight, *part.packed))
        seed = () if self.seed is None else (self.seed,)
        return [*self.predictor, *(self.prior or ()), *self.halves, *seed, *flat]


class FutureStep:
    """One future step: encode the last frame, draw z, predict the next features, decode them to the next frame.

    Frame, states, skip halves and the noise's offset are read and left behind in the same memory at every call, and
    nothing is read back by the host, so that a CUDA graph of a call can be replayed, each time with fresh noise.
    """

    def __init__(self, model: SVG, n_samples: int, batch_statistics: bool, start: Start) -> None:
        # not the model itself, which may go while this is kept for its next rollouts
        self.encoder, self.decoder, self.predictor = model.encoder, model.decoder, model.frame_predictor
        self.prior = model.prior if model.config.variant == "lp" else None
        self.config = model.config
        self.n_samples, self.batch_statistics = n_samples, batch_statistics
        self.now = start
        rows = start.predictor[0].shape[1]
        self.zeros = start.predictor[0].new_zeros(rows, self.config.z_dim)
        self.frame: Tensor | None = None

    def begin(self, h: Tensor, start: Start, eps: Tensor | None = None) -> Tensor:
        """The first future frame (S * B, C, H, W), from the last conditioning frame's features h (S * B, g_dim)."""
        if start is not self.now:
            for own, given in zip(self.now.tensors(), start.tensors(), strict=True):
                own.copy_(given)
        frame = self._predict(h, eps)
        self.frame = channels_last(frame) if self.frame is None else self.frame.copy_(frame)
        return self.frame

    def __call__(self, eps: Tensor | None = None) -> Tensor:
        """The next frame (S * B, C, H, W), overwritten by the next call; noise eps (S * B, z_dim), if it is given."""
        assert self.frame is not None
        now = self.now
        with _own_casts(self.frame.device.type):
            h, skips, _ = self.encoder.encode(self.frame, now.encoder_weights, self.n_samples, self.batch_statistics)
            if self.config.last_frame_skip:
                torch._foreach_copy_(now.halves, self.decoder.skip_halves(skips, now.decoder_weights))
            return self.frame.copy_(self._predict(h, eps))

    def _predict(self, h: Tensor, eps: Tensor | None) -> Tensor:
        now, states, after = self.now, [*self.now.predictor], []
        latent = []
        if self.prior is not None:
            assert now.prior is not None
            z, prior = self.prior.sample_step(h, now.prior, seed=now.seed if eps is None else None, eps=eps)
            latent, states, after = [z], [*states, *now.prior], [*prior]
        elif self.config.variant == "fp":
            latent = [ops.gaussian_rsample(self.zeros, self.zeros, seed=now.seed) if eps is None else eps]
        predicted, predictor = self.predictor.step(torch.cat((h, *latent), dim=-1), now.predictor)
        torch._foreach_copy_(states, [*predictor, *after])
        if eps is None and now.seed is not None:
            advance(now.seed)
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


def advance(seed: Tensor) -> None:
    """The noise of the next step: another offset, in place."""
    seed[1:] += 1


# Of each model the last future step and what it was made for: a graph holds on to the memory of a step.
_kept: WeakKeyDictionary[SVG, tuple[Hashable, FutureStep, Graphed[Tensor]]] = WeakKeyDictionary()


def future_step(
    model: SVG, n_samples: int, batch_statistics: bool, start: Start, *, cuda_graph: bool
) -> tuple[FutureStep, Callable[..., Tensor]]:
    """A step for these rollouts and how to call it: on a GPU as a CUDA graph, unless that is not wanted.

    The graph is that of the model's last rollouts, where theirs were alike and all tensors still lie where they did.
    """
    device = start.predictor[0].device
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
    key = (model.config, n_samples, batch_statistics, start.seed is None, modes, shapes, where)
    kept = _kept.get(model)
    if kept is None or kept[0] != key:
        step = FutureStep(model, n_samples, batch_statistics, start)
        kept = _kept[model] = (key, step, Graphed(step, device, "a rollout's future step"))
    return kept[1:]
