"""The SVG model: SVG-LP, SVG-FP and the deterministic baseline in one class (Denton & Fergus 2018).

Training is teacher-forced, so only the LSTM recurrences are sequential. Every frame is encoded once, the LSTMs run over
whole sequences, and the decoder takes all steps, working through time in chunks whose activations stay small.
The numbers are those of the published loop, one frame after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..ops.synchronised_norm import largest
from . import chunks, conditioning, dcgan, generation, pretrained, vgg
from .config import SVGConfig, check_conditioning
from .frame_network import FrameDecoder, FrameEncoder, channels_last, joined, presented_once
from .noise import draw_seed
from .recurrent import LSTM, GaussianLSTM

_BACKBONES = {"dcgan": (dcgan.Encoder, dcgan.Decoder), "vgg": (vgg.Encoder, vgg.Decoder)}


class SVGOutput(NamedTuple):
    """The training step's result. T frames give T - 1 steps; the sums run over the steps.

    loss = mse + beta * kl, scalars; mse = sum over steps of the mean squared error; kl in nats per sequence.
    mse_per_step, kl_per_step (T - 1,); prediction (B, T - 1, C, H, W), the frames 1 .. T - 1 as predicted.
    """

    loss: Tensor
    mse: Tensor
    kl: Tensor
    mse_per_step: Tensor
    kl_per_step: Tensor
    prediction: Tensor


class SVG(nn.Module):
    """Stochastic Video Generation; see `SVGConfig` for its settings and `svg_fast.preset` for the paper's.

    Submodules and state_dict keys carry the published names: encoder, decoder, frame_predictor, posterior (not in the
    deterministic baseline), prior (SVG-LP only).
    """

    def __init__(self, config: SVGConfig) -> None:
        super().__init__()
        self.config = config
        make_encoder, make_decoder = _BACKBONES[config.backbone]
        shape = (config.channels, config.g_dim, config.nf, config.image_size)
        self.encoder: FrameEncoder = make_encoder(*shape)
        self.decoder: FrameDecoder = make_decoder(*shape)
        g_dim, z_dim, rnn_size = config.g_dim, config.z_dim, config.rnn_size
        stochastic = config.variant != "det"
        self.frame_predictor = LSTM(g_dim + z_dim * stochastic, g_dim, rnn_size, config.predictor_rnn_layers)
        if stochastic:
            self.posterior = GaussianLSTM(g_dim, z_dim, rnn_size, config.posterior_rnn_layers)
        if config.variant == "lp":
            self.prior = GaussianLSTM(g_dim, z_dim, rnn_size, config.prior_rnn_layers)
        self.apply(_initialise)

    def forward(
        self,
        frames: Tensor,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: Tensor | None = None,
    ) -> SVGOutput:
        """One teacher-forced pass over a clip; all of the bound's terms.

        frames (B, T, C, H, W), float in [0, 1] or uint8; T > n_past. eps (T - 1, B, z_dim) replaces the posterior's
        noise; otherwise `seed`, an int64 tensor (2,) of (seed, offset) on the model's device, determines it, or is
        drawn from `generator`, by default torch's own for that device.
        In training mode BatchNorm normalises each time step by its own statistics, and its running statistics advance
        in the published order; in eval mode it uses the running ones.

        Raises ValueError or TypeError for frames or eps that do not fit.
        """
        config = self.config
        x = self.prepare_frames(frames).transpose(0, 1)
        n_frames = len(x)
        check_conditioning(config, config.n_past, n_frames)
        n_skips = config.skip_frames(config.n_past, n_frames)

        features, skips = self._encode(x, n_skips)
        latent, kl_per_step = self._infer(features, eps, generator, seed)
        predicted = self.frame_predictor(torch.cat((features[:-1], *latent), dim=-1))
        prediction = self._decode(predicted, skips)

        mse_per_step = (prediction - x[1:]).square().mean(dim=(1, 2, 3, 4))
        mse, kl = mse_per_step.sum(), kl_per_step.sum()
        return SVGOutput(mse + config.beta * kl, mse, kl, mse_per_step, kl_per_step, prediction.transpose(0, 1))

    sample = generation.sample
    sample_chunks = generation.sample_chunks
    infer = conditioning.infer

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model to `folder` as the hub has it: `model.safetensors` and `config.json`.

        dtype: in which weights are stored, such as torch.float16; None is the model's. Errors are those of
        `svg_fast.models.pretrained.save`.
        """
        pretrained.save(self, folder, dtype)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> SVG:
        """The model of such a folder, of that name in the library, or of a Hugging Face repository; in eval mode, CPU.

        Errors are those of `svg_fast.models.pretrained.load`.
        """
        return pretrained.load(cls, source)

    def prepare_frames(self, frames: Tensor) -> Tensor:
        """Frames (B, T, C, H, W), checked (their range on the CPU only), in [0, 1] and in the model's dtype."""
        weight, size = self.frame_predictor.embed.weight, self.config.image_size
        if frames.device != weight.device:
            raise ValueError(f"frames must be on the model's device {weight.device}, got {frames.device}")
        if frames.dim() != 5:
            raise ValueError(f"frames must have 5 dimensions (B, T, C, H, W), got shape {list(frames.shape)}")
        if not frames.shape[0]:
            raise ValueError(f"frames must hold at least one clip, got shape {list(frames.shape)}")
        wanted = (self.config.channels, size, size)
        if tuple(frames.shape[2:]) != wanted:
            raise ValueError(f"frames must be (B, T, {wanted[0]}, {size}, {size}), got shape {list(frames.shape)}")
        if frames.dtype == torch.uint8:
            return frames.to(weight.dtype) / 255
        if not frames.is_floating_point():
            raise TypeError(f"frames must be uint8, or floating point in [0, 1], got {frames.dtype}")
        # off the CPU the check would stall the device, and a traced graph cannot raise
        if frames.device.type == "cpu" and not torch.compiler.is_compiling() and frames.numel():
            low, high = (float(bound) for bound in torch.aminmax(frames.detach()))
            if not (low >= 0 and high <= 1):
                raise ValueError(f"frames must lie in [0, 1] (or be uint8), got values from {low:g} to {high:g}")
        return frames.to(weight.dtype)

    def _infer(
        self, features: Tensor, eps: Tensor | None, generator: torch.Generator | None, seed: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Features (T, B, g_dim) -> the latent (T - 1, B, z_dim), or nothing, and kl (T - 1,)."""
        variant, steps, batch = self.config.variant, len(features) - 1, features.shape[1]
        if variant == "det":
            if eps is not None:
                raise ValueError("the deterministic model has no latent: eps must be None")
            return (), self.frame_predictor.embed.weight.new_zeros(steps)
        if eps is not None and tuple(eps.shape) != (steps, batch, self.config.z_dim):
            raise ValueError(
                f"eps must have shape {[steps, batch, self.config.z_dim]} (T - 1, B, z_dim), got {list(eps.shape)}"
            )
        mu, logvar = self.posterior(features[1:])
        prior = self.prior(features[:-1]) if variant == "lp" else (None, None)
        if seed is not None and seed.device != features.device:
            raise ValueError(f"seed must be on {features.device} like the model, got {seed.device}")
        if eps is None and seed is None:
            seed = draw_seed(generator, features.device)
        z, kl = ops.gaussian_rsample_kl(mu, logvar, *prior, seed=seed, eps=eps)
        return (z,), kl

    def _encode(self, x: Tensor, n_skips: int) -> tuple[Tensor, list[Tensor]]:
        """Frames (T, B, C, H, W) -> features (T, B, g_dim); skips (n_skips * B, ...) of the first frames."""
        n_frames, batch = x.shape[:2]
        weights = self.encoder.weights(self.training)
        features, skips, statistics = [], [], []
        for first, last in self.time_runs(batch, n_skips, n_frames):
            images, steps = channels_last(x[first:last].flatten(0, 1)), last - first
            wanted = min(max(n_skips - first, 0), steps) * batch
            h, skip, stats = self._run(self.encoder.encode, images, weights, steps, self.training, wanted)
            features.append(h.unflatten(0, (steps, batch)))
            statistics.append(stats)
            if first < n_skips:
                skips.append(skip)
        if self.training:
            # SVG-LP encodes every frame but the first and last twice, as a step's target and as the next one's input
            repeats = presented_once(n_frames, x)
            if self.config.variant == "lp":
                repeats[1:-1].fill_(2)
            self.encoder.update_running_statistics(statistics, repeats)
        return joined(features), [joined(levels) for levels in zip(*skips, strict=True)]

    def _decode(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        """Predicted features (T - 1, B, g_dim), skips (n_skips * B, ...) -> frames (T - 1, B, C, H, W).

        Step j takes skip min(j, n_skips - 1): the last one is shared by all steps from its own on.
        """
        steps, batch = h.shape[:2]
        n_skips = len(skips[0]) // batch
        weights = self.decoder.weights(self.training)
        # one chunk of skips for each chunk of steps up to the last skip, whose halves the later chunks share
        runs = list(self.time_runs(batch, n_skips - 1, steps))
        sizes = [(min(last, n_skips) - first) * batch for first, last in runs if first < n_skips]
        chunks_of_skips = (
            zip(*(level.split(sizes) for level in skips), strict=True) if len(sizes) > 1 else iter([skips])
        )
        frames, statistics = [], []
        halves: list[Tensor] = []
        for first, last in runs:
            if first < n_skips:
                halves = self.decoder.skip_halves(next(chunks_of_skips), weights)
            inputs = h[first:last].flatten(0, 1)
            x, stats = self._run(self.decoder.decode, inputs, halves, weights, last - first, self.training)
            frames.append(x.unflatten(0, (last - first, batch)))
            statistics.append(stats)
        if self.training:
            self.decoder.update_running_statistics(statistics, presented_once(steps, h))
        return joined(frames)

    def time_runs(self, batch: int, border: int, stop: int, rows: int | None = None) -> Iterator[tuple[int, int]]:
        """Cut the steps 0 .. stop - 1 at `border`, and both parts into about equal runs of at most `time_chunk`.

        By default a CPU takes as many as keep activations small, and an accelerator all of them in one.
        """
        images = rows or chunks.images_at_once(self.config, self.frame_predictor.embed.weight)
        chunk = self.config.time_chunk
        if chunk is None and images is not None:
            if (group := self.encoder.statistics_group()) is not None:
                batch = largest(batch, group)  # processes that share statistics must cut time alike
            chunk = max(images // batch, 1)
        if chunk is None:
            yield 0, stop
            return
        for first, last in ((0, border), (border, stop)):
            pieces = -(-(last - first) // chunk)
            edges = [first + (last - first) * k // max(pieces, 1) for k in range(pieces + 1)]
            yield from pairwise(edges)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call, or call under activation recomputation."""
        if self.config.recompute and torch.is_grad_enabled():
            # nothing inside draws random numbers: no state to keep
            return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return function(*arguments)


def _initialise(module: nn.Module) -> None:
    """A new model's parameters as published; LSTM cells keep torch's default."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
