"""Generating futures: condition on given frames, then feed every prediction back (section 3 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops
from .config import Statistics, check_conditioning
from .frame_network import channels_last

if TYPE_CHECKING:
    from .svg import SVG


@torch.no_grad()
def sample(
    model: SVG,
    frames: Tensor,
    n_future: int,
    n_samples: int = 1,
    *,
    statistics: Statistics | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """S = n_samples rollouts of every clip, all samples in one batch.

    While conditioning, the posterior's sample (SVG-LP) or mean (SVG-FP) drives the frame predictor; afterwards z comes
    from the prior, and each predicted frame is encoded as the next input.

    frames (B, n_past, C, H, W), float in [0, 1] or uint8 -> (S, B, n_past + n_future, C, H, W), the given frames first.
    statistics: BatchNorm by "batch" (each sample and step by itself) or "running" statistics; None is the
    configuration's, by default how the variant was published. No running statistics change.
    eps (n_past + n_future - 1, S, B, z_dim) replaces the noise, otherwise drawn from `generator`.

    Raises ValueError for frames or eps that do not fit, and for batch statistics of a single clip.
    """
    config = model.config
    x = model.prepare_frames(frames).transpose(0, 1)
    n_past, batch = x.shape[:2]
    n_frames = n_past + n_future
    for name, count in (("the given frames", n_past), ("n_future", n_future), ("n_samples", n_samples)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    check_conditioning(config, n_past, n_frames)
    batch_statistics = _uses_batch(statistics or config.sampling_statistics(), batch)
    noise = _noise(model, (n_frames - 1, n_samples, batch, config.z_dim), eps, generator)

    encoder_weights, weights = model.encoder.weights(), model.decoder.weights()
    images = channels_last(x.flatten(0, 1))
    known, known_skips, _ = model.encoder.encode(images, encoder_weights, n_past, batch_statistics)
    features = known.unflatten(0, (n_past, batch))
    n_skips = min(config.skip_frames(n_past, n_frames), n_past)
    skips = [level.unflatten(0, (n_past, batch))[n_skips - 1] for level in known_skips]
    halves = model.decoder.skip_halves(skips, weights)

    latent = _Latent(model, n_samples, batch)
    state = model.frame_predictor.init_state(n_samples * batch)
    video = [frame.expand(n_samples, *frame.shape) for frame in x]
    h = features[0].expand(n_samples, batch, -1)
    for i in range(1, n_frames):
        target = features[i] if i < n_past else None
        predictor_input = torch.cat((h, *latent.step(h, target, noise[i - 1])), dim=-1)
        predicted, state = model.frame_predictor.step(predictor_input.flatten(0, 1), state)
        if target is not None:
            h = target.expand(n_samples, batch, -1)
            continue
        frame, _ = model.decoder.decode(predicted, halves, weights, n_samples, batch_statistics)
        video.append(frame.unflatten(0, (n_samples, batch)))
        if i < n_frames - 1:
            flat, skips, _ = model.encoder.encode(channels_last(frame), encoder_weights, n_samples, batch_statistics)
            h = flat.unflatten(0, (n_samples, batch))
            if config.last_frame_skip:
                halves = model.decoder.skip_halves(skips, weights)
    return torch.stack(video, dim=2)


class _Latent:
    """The latent's side of a rollout: posterior while conditioning, prior afterwards, and their states."""

    def __init__(self, model: SVG, n_samples: int, batch: int) -> None:
        self.model, self.variant = model, model.config.variant
        if self.variant != "det":
            self.posterior_state = model.posterior.init_state(batch)
        if self.variant == "lp":
            self.prior_state = model.prior.init_state(n_samples * batch)

    def step(self, h: Tensor, target: Tensor | None, noise: Tensor) -> tuple[Tensor, ...]:
        """Features h (S, B, g_dim) and, while it is known, the next frame's (B, g_dim) -> (z (S, B, z_dim),), or ()."""
        if self.variant == "det":
            return ()
        if self.variant == "lp":
            # the prior sees every frame, so that its state is right when its sample is wanted
            mu, logvar, self.prior_state = self.model.prior.step(h.flatten(0, 1), self.prior_state)
            mu, logvar = mu.view_as(noise), logvar.view_as(noise)
        else:
            mu, logvar = torch.zeros_like(noise), torch.zeros_like(noise)
        if target is not None:
            mu, logvar, self.posterior_state = self.model.posterior.step(target, self.posterior_state)
            mu, logvar = mu.expand_as(noise), logvar.expand_as(noise)
            if self.variant == "fp":
                return (mu,)
        return (ops.gaussian_rsample(mu, logvar, eps=noise),)


def _uses_batch(statistics: Statistics, batch: int) -> bool:
    if statistics not in ("batch", "running"):
        raise ValueError(f'statistics must be "batch" or "running", got {statistics!r}')
    if statistics == "batch" and batch == 1:
        raise ValueError(
            "batch statistics are undefined for a batch of one clip (the encoder's head has one value per channel);"
            ' sample two clips or more, or use statistics="running"'
        )
    return statistics == "batch"


def _noise(model: SVG, shape: tuple[int, ...], eps: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """The caller's noise, checked, or fresh noise of the given shape (steps, S, B, z_dim); none for the baseline."""
    weight = model.frame_predictor.embed.weight
    if model.config.variant == "det":
        if eps is not None:
            raise ValueError("the deterministic model has no latent: eps must be None")
        return weight.new_empty(shape[0], 0)
    if eps is None:
        device = weight.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device, dtype=weight.dtype).to(weight.device)
    if tuple(eps.shape) != shape:
        raise ValueError(
            f"eps must have shape {list(shape)} (n_past + n_future - 1, S, B, z_dim), got {list(eps.shape)}"
        )
    return eps.to(weight)
