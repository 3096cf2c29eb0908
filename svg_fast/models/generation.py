"""Generating futures: condition on given frames, then feed every prediction back (section 3 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops
from .config import Statistics, check_conditioning
from .frame_network import channels_last
from .recurrent import State
from .rollout import Start, advance, future_step

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
    cuda_graph: bool = True,
) -> Tensor:
    """S = n_samples rollouts of every clip, all samples in one batch.

    While conditioning, the posterior's sample (SVG-LP) or mean (SVG-FP) drives the frame predictor; afterwards z comes
    from the prior, and each predicted frame is encoded as the next input.

    frames (B, n_past, C, H, W), float in [0, 1] or uint8 -> (S, B, n_past + n_future, C, H, W), the given frames first.
    statistics: BatchNorm by "batch" (each sample and step by itself) or "running" statistics; None is the
    configuration's, by default how the variant was published. No running statistics change.
    eps (n_past + n_future - 1, S, B, z_dim) replaces the noise, which is otherwise drawn from `generator`, and without
    one by a seed from torch's default generator.
    cuda_graph: on a GPU the future steps are replays of one CUDA graph, captured at a model's first rollouts of a
    shape and kept for the next ones; False runs them one kernel after another. The result is the same.

    Raises ValueError for frames or eps that do not fit, and for batch statistics of a single clip.
    """
    config = model.config
    x = model.prepare_frames(frames).transpose(0, 1)
    n_past, batch = x.shape[:2]
    n_frames, rows = n_past + n_future, n_samples * batch
    for name, count in (("the given frames", n_past), ("n_future", n_future), ("n_samples", n_samples)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    check_conditioning(config, n_past, n_frames)
    batch_statistics = _uses_batch(statistics or config.sampling_statistics(), batch)
    noise = _Noise(model, (n_frames - 1, n_samples, batch, config.z_dim), eps, generator)

    encoder_weights, weights = model.encoder.weights(), model.decoder.weights()
    images = channels_last(x.flatten(0, 1))
    known, known_skips, _ = model.encoder.encode(images, encoder_weights, n_past, batch_statistics)
    features = known.unflatten(0, (n_past, batch))
    n_skips = min(config.skip_frames(n_past, n_frames), n_past)
    skips = [level.unflatten(0, (n_past, batch))[n_skips - 1] for level in known_skips]
    if config.last_frame_skip:  # by and by each sample has its own
        skips = [skip.repeat(n_samples, 1, 1, 1) for skip in skips]

    latent = _Latent(model, n_samples, batch)
    state = model.frame_predictor.init_state(rows)
    h = features[0].expand(n_samples, batch, -1)
    for i in range(1, n_past):
        predictor_input = torch.cat((h, *latent.step(h, features[i], noise, i - 1)), dim=-1)
        _, state = model.frame_predictor.step(predictor_input.flatten(0, 1), state)
        h = features[i].expand(n_samples, batch, -1)

    halves = model.decoder.skip_halves(skips, weights)
    start = Start(state, latent.prior_state, halves, noise.seed, encoder_weights, weights)
    step, run = future_step(model, n_samples, batch_statistics, start, cuda_graph=cuda_graph)
    future = [step.begin(h.flatten(0, 1), start, *noise.rows(n_past - 1)).clone()]
    for i in range(n_past, n_frames - 1):
        future.append(run(*noise.rows(i)).clone())
    video = [frame.expand(n_samples, *frame.shape) for frame in x]
    return torch.stack([*video, *(frame.unflatten(0, (n_samples, batch)) for frame in future)], dim=2)


class _Noise:
    """Standard normal noise for every step: a table of it, or a seed from which the ops draw it."""

    def __init__(
        self, model: SVG, shape: tuple[int, ...], eps: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Shape (steps, S, B, z_dim). The caller's noise, checked, or that of his generator; else of a new seed."""
        weight = model.frame_predictor.embed.weight
        self.table: Tensor | None = None
        self.seed: Tensor | None = None
        if model.config.variant == "det":
            if eps is not None:
                raise ValueError("the deterministic model has no latent: eps must be None")
        elif eps is not None:
            if tuple(eps.shape) != shape:
                raise ValueError(
                    f"eps must have shape {list(shape)} (n_past + n_future - 1, S, B, z_dim), got {list(eps.shape)}"
                )
            self.table = eps.to(weight)
        elif generator is not None:
            drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=weight.dtype)
            self.table = drawn.to(weight.device)
        else:
            self.seed = torch.randint(2**63 - 1, (2,)).to(weight.device)

    def rows(self, step: int) -> tuple[Tensor, ...]:
        """Of a table the noise (S * B, z_dim) of a step; nothing where there is none."""
        return () if self.table is None else (self.table[step].flatten(0, 1),)


class _Latent:
    """The latent's side of the conditioning frames: the posterior's sample or mean, and the prior's state."""

    def __init__(self, model: SVG, n_samples: int, batch: int) -> None:
        self.model, self.variant = model, model.config.variant
        self.prior_state: State | None = None
        if self.variant != "det":
            self.posterior_state = model.posterior.init_state(batch)
        if self.variant == "lp":
            self.prior_state = model.prior.init_state(n_samples * batch)

    def step(self, h: Tensor, target: Tensor, noise: _Noise, step: int) -> tuple[Tensor, ...]:
        """Features h (S, B, g_dim), and the next frame's (B, g_dim) -> (z (S, B, z_dim),), or ()."""
        if self.variant == "det":
            return ()
        if self.prior_state is not None:
            # the prior sees every frame, so that its state is right when its sample is wanted
            _, _, self.prior_state = self.model.prior.step(h.flatten(0, 1), self.prior_state)
        mu, logvar, self.posterior_state = self.model.posterior.step(target, self.posterior_state)
        mu, logvar = (x.expand(len(h), *x.shape) for x in (mu, logvar))
        if self.variant == "fp":
            return (mu,)
        z = ops.gaussian_rsample(mu, logvar, seed=noise.seed, eps=None if noise.table is None else noise.table[step])
        if noise.seed is not None:
            advance(noise.seed)
        return (z,)


def _uses_batch(statistics: Statistics, batch: int) -> bool:
    if statistics not in ("batch", "running"):
        raise ValueError(f'statistics must be "batch" or "running", got {statistics!r}')
    if statistics == "batch" and batch == 1:
        raise ValueError(
            "batch statistics are undefined for a batch of one clip (the encoder's head has one value per channel);"
            ' sample two clips or more, or use statistics="running"'
        )
    return statistics == "batch"
