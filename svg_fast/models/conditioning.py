"""What given frames say before anything is generated, the same for all samples.

S samples of B clips; n_past given frames that condition, T frames in all, so T - 1 steps: step j makes frame j + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import ops
from .config import Statistics, uses_batch
from .frame_network import Weights, channels_last, joined
from .rollout import Start, repeated

if TYPE_CHECKING:
    from .svg import SVG


class Inferred(NamedTuple):
    """Mean and log variance of every step, (T - 1, B, z_dim); None where the model has no such net."""

    posterior: tuple[Tensor, Tensor] | None
    prior: tuple[Tensor, Tensor] | None


@torch.no_grad()
def infer(model: SVG, frames: Tensor, *, statistics: Statistics | None = None) -> Inferred:
    """What posterior and learned prior say of true frames (B, T, C, H, W), T of two or more; entry j is of frame j + 1.

    BatchNorm by batch or running statistics, by default as in `sample`; no running statistics change.

    Raises ValueError for frames that do not fit.
    """
    if frames.dim() == 5 and frames.shape[1] < 2:
        raise ValueError(f"frames must be at least two of each clip, got {frames.shape[1]}")
    x = frames if frames.dim() == 5 and frames.dtype == torch.uint8 else model.prepare_frames(frames)
    batch_statistics = uses_batch(model.config, statistics, len(x))
    features, _ = _encode(model, x, model.encoder.weights(batch_statistics), batch_statistics)
    variant = model.config.variant
    return Inferred(
        model.posterior(features[1:]) if variant != "det" else None,
        model.prior(features[:-1]) if variant == "lp" else None,
    )


def _encode(
    model: SVG, x: Tensor, weights: Weights, batch_statistics: bool, n_skips: int = 0, rows: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Frames (B, T, C, H, W), uint8 or prepared, a run of time steps at once -> features (T, B, g_dim), and the skips
    (B, ...) of frame n_skips - 1."""
    batch, n_frames = x.shape[:2]
    features, skips = [], list[Tensor]()
    for first, last in model.time_runs(batch, n_skips, n_frames, rows):
        run = x[:, first:last]
        if run.dtype == torch.uint8:  # not all at once: as floats they are four times as large
            run = model.prepare_frames(run)
        images = channels_last(run.transpose(0, 1).flatten(0, 1))
        wanted = (n_skips - first) * batch if first < n_skips <= last else 0
        h, found, _ = model.encoder.encode(images, weights, last - first, batch_statistics, wanted)
        features.append(h.unflatten(0, (-1, batch)))
        skips = [level[-batch:] for level in found] or skips
    return joined(features), skips


class Conditioning:
    """A range of clips: their features, the skip halves of the future, what posterior and prior make of them."""

    def __init__(
        self,
        model: SVG,
        given: Tensor,
        n_past: int,
        n_frames: int,
        weights: tuple[Weights, Weights],
        batch_statistics: bool,
        rows: int,
    ) -> None:
        """given (B, n, C, H, W): the first n_past frames condition, the posterior sees all. weights: of encoder and
        decoder. rows: images to encode at once."""
        config = model.config
        self.model, self.n_past, self.weights = model, n_past, weights
        n_skips = min(config.skip_frames(n_past, n_frames), n_past)
        self.features, skips = _encode(model, given, weights[0], batch_statistics, n_skips, rows)
        self.halves = model.decoder.skip_halves(skips, weights[1])
        self.posterior = self.prior = None
        if config.variant != "det" and len(self.features) > 1:
            self.posterior = model.posterior(self.features[1:])
        if config.variant == "lp":
            self.prior = model.prior.init_state(len(given))
            for h in self.features[: n_past - 1]:  # it sees every frame, so that its state is right when it is asked
                _, _, self.prior = model.prior.step(h, self.prior)

    def latents(self, eps: Tensor) -> Tensor:
        """The posterior's sample z of the first steps, by noise eps (steps, S, B, z_dim)."""
        assert self.posterior is not None
        mu, logvar = (part[: len(eps), None].expand_as(eps).contiguous() for part in self.posterior)
        return ops.gaussian_rsample(mu, logvar, eps=eps)

    def start(self, z: Tensor, draws: bool) -> Start:
        """After the conditioning frames, for S samples: z (n_past - 1, S, B, z_dim) drove the frame predictor. draws:
        whether the learned prior is to be drawn from."""
        n_samples, batch = z.shape[1:3]
        state = self.model.frame_predictor.init_state(n_samples * batch)
        for h, latent in zip(self.features[: self.n_past - 1], z, strict=True):
            x = torch.cat((h.repeat(n_samples, 1), latent.flatten(0, 1)), dim=-1)
            _, state = self.model.frame_predictor.step(x, state)
        h = self.features[self.n_past - 1].repeat(n_samples, 1)
        prior = repeated(self.prior, n_samples) if draws and self.prior else None
        halves = self.halves
        if self.model.config.last_frame_skip:  # by and by each sample has its own
            halves = [half.repeat(n_samples, 1, 1, 1) for half in halves]
        return Start(h, state, prior, halves, *self.weights)
