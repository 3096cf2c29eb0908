"""Generating futures: condition on given frames, then feed every prediction back (section 3 of the paper).

S samples of B clips; n_past given frames, n_future generated ones, T in all, so T - 1 steps. What the given frames say
is computed once for all samples. Samples, and clips where BatchNorm lets them, are worked off in chunks of bounded
memory; noise belongs to a sample and a clip, so it does not depend on the chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from .chunks import chunk_size, ranges
from .conditioning import Conditioning
from .config import Statistics, check_conditioning, uses_batch
from .noise import Noise
from .rollout import Start, future_step

if TYPE_CHECKING:
    from .svg import SVG

Latents = Literal["prior", "posterior"]


class SampleOptions(TypedDict, total=False):
    """Options of `sample` and `sample_chunks`; each has its default.

    statistics: BatchNorm by "batch" (each sample and step by itself, over the B clips) or "running" statistics; None is
    the configuration's, by default how the variant was published. No running statistics change.
    seed: of the noise, 0 <= seed < 2**63, the same for every chunking, number of samples and, to rounding, device;
    otherwise it is drawn from `generator`, by default torch's own. eps (T - 1, S, B, z_dim) replaces the noise.
    latents: where the future's z come from: "prior" (in SVG-FP the standard normal), or "posterior": of the true next
    frame, so that all T frames are given. While conditioning they are the posterior's in any case.
    z (T - 1, S, B, z_dim): the latents themselves, as other rollouts left them or `interpolate_latents` made them.
    temperature: factor of the future's standard deviation, a number or one for each sample (S,); 0 is the mean.
    branch_at: a frame n_past <= k < T: all samples are the first one up to frame k, and go their own ways from there.
    memory_limit: about the bytes that a chunk may take, prepared weights included, beside the model and what is given;
    None leaves it to the device.
    cuda_graph: on a GPU the future steps are replays of one CUDA graph, captured at a model's first rollouts of a
    shape and kept for the next ones; False runs them one kernel after another. The result is the same.
    """

    statistics: Statistics | None
    seed: int | None
    generator: torch.Generator | None
    eps: Tensor | None
    latents: Latents
    z: Tensor | None
    temperature: float | Tensor
    branch_at: int | None
    memory_limit: int | None
    cuda_graph: bool


class Chunk(NamedTuple):
    """Some samples of some clips.

    video (S', B', T, C, H, W), the given frames first; latents (T - 1, S', B', z_dim): z of every step.
    """

    samples: range
    clips: range
    video: Tensor
    latents: Tensor


@torch.no_grad()
def sample(model: SVG, frames: Tensor, n_future: int, n_samples: int = 1, **options: Unpack[SampleOptions]) -> Tensor:
    """S = n_samples futures of every clip; the options are those of `SampleOptions`.

    While conditioning, the posterior's sample (SVG-LP) or mean (SVG-FP) drives the frame predictor; afterwards z comes
    from the prior, and each predicted frame is encoded as the next input.

    frames (B, n_past, C, H, W), float in [0, 1] or uint8 -> (S, B, n_past + n_future, C, H, W), the given frames first.
    For latents="posterior" frames are all T = n_past + n_future.

    Raises ValueError for frames or options that do not fit, and for batch statistics of a single clip.
    """
    plan = _Plan(model, frames, n_future, n_samples, options)
    video = plan.given.new_empty((n_samples, len(frames), plan.n_frames, *frames.shape[2:]))
    for _ in plan.chunks(video):
        pass
    return video


def sample_chunks(
    model: SVG, frames: Tensor, n_future: int, n_samples: int = 1, **options: Unpack[SampleOptions]
) -> Iterator[Chunk]:
    """`sample`, a chunk at a time: all samples of some clips, then of the next, in order.

    No more than one chunk is held, so any number of samples, clips and frames can be gone through.
    """
    return _Plan(model, frames, n_future, n_samples, options).chunks()


def interpolate_latents(a: Tensor, b: Tensor, n_samples: int) -> Tensor:
    """Between two latent sequences: a, b (T - 1, B, z_dim) -> (T - 1, S, B, z_dim), the first sample a, the last b.

    For `z` of `sample`: what lies between two futures, or between what the posterior saw in two clips. Linear in z.

    Raises ValueError for shapes that differ, or fewer than two samples.
    """
    if a.shape != b.shape or a.dim() != 3:
        raise ValueError(f"a and b must have one shape (T - 1, B, z_dim), got {list(a.shape)} and {list(b.shape)}")
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2, both ends included, got {n_samples}")
    weights = torch.linspace(0, 1, n_samples, dtype=a.dtype, device=a.device)[:, None, None]
    return torch.lerp(a[:, None], b[:, None], weights)


class _Plan:
    """A call's arguments, checked, and how it is cut into chunks."""

    def __init__(self, model: SVG, frames: Tensor, n_future: int, n_samples: int, options: SampleOptions) -> None:
        if unknown := options.keys() - SampleOptions.__annotations__.keys():
            known = ", ".join(SampleOptions.__annotations__)
            raise TypeError(f"unknown option {', '.join(sorted(unknown))} of sample; the options are {known}")
        config = model.config
        self.model, self.n_samples = model, n_samples
        self.given = model.prepare_frames(frames)
        batch, n_given = self.given.shape[:2]
        latents = options.get("latents", "prior")
        if latents not in get_args(Latents):
            raise ValueError(f'latents must be "prior" or "posterior", got {latents!r}')
        self.follows = latents == "posterior"
        self.n_past = n_given - n_future if self.follows else n_given
        self.n_frames = self.n_past + n_future
        for name, count in (("the given frames", self.n_past), ("n_future", n_future), ("n_samples", n_samples)):
            if count < 1:
                beyond = f" beyond n_future = {n_future}" if self.follows and count == self.n_past else ""
                raise ValueError(f"{name} must be at least 1{beyond}, got {count}")
        check_conditioning(config, self.n_past, self.n_frames)
        if self.follows and config.variant == "det":
            raise ValueError('the deterministic model has no latent: latents="posterior" asks for one')
        self.batch_statistics = uses_batch(config, options.get("statistics"), batch)
        self.branch_at = options.get("branch_at")
        if self.branch_at is not None and not self.n_past <= self.branch_at < self.n_frames:
            raise ValueError(
                f"branch_at must be a generated frame, {self.n_past} to {self.n_frames - 1} counted from 0, got"
                f" {self.branch_at}"
            )
        shape = (self.n_frames - 1, n_samples, batch, config.z_dim)
        self.z = options.get("z")
        self.noise = Noise(model, shape, options.get("eps"), self.z, options.get("seed"), options.get("generator"))
        self.temperature = _temperature(options.get("temperature", 1.0), n_samples, self.given)
        self.cuda_graph = options.get("cuda_graph", True)
        self.memory_limit = options.get("memory_limit")

    @torch.no_grad()
    def chunks(self, whole: Tensor | None = None) -> Iterator[Chunk]:
        """Every chunk, in memory of its own, or as a part of the `whole` video (S, B, T, C, H, W)."""
        model, batch = self.model, len(self.given)
        weights = model.encoder.weights(self.batch_statistics), model.decoder.weights(self.batch_statistics)
        n_samples, n_clips, rows = chunk_size(
            model.config,
            self.given,
            self.n_frames,
            self.n_samples,
            whole_batch=self.batch_statistics,
            memory_limit=self.memory_limit,
            weights=weights,
        )
        for clips in ranges(batch, n_clips):
            given = self.given[clips.start : clips.stop]
            known = Conditioning(model, given, self.n_past, self.n_frames, weights, self.batch_statistics, rows)
            for samples in ranges(self.n_samples, n_samples):
                if whole is None:
                    video = given.new_empty((len(samples), len(clips), self.n_frames, *given.shape[2:]))
                else:
                    video = whole[samples.start : samples.stop, clips.start : clips.stop]
                video[:, :, : self.n_past] = given[:, : self.n_past]
                latents = self._latents(known, samples, clips)
                self._play(known, latents, video)
                yield Chunk(samples, clips, video, latents)
                del video, latents  # or they would live until the next ones do

    def _latents(self, known: Conditioning, samples: range, clips: range) -> Tensor:
        """(T - 1, S', B', z_dim): z where it is known beforehand, elsewhere the noise of the prior's sample."""
        latents = self._scaled_noise(samples, clips)
        if self.branch_at is not None:  # step k - 1 makes frame k, the first one that is a sample's own
            latents[: self.branch_at - 1] = self._scaled_noise(range(1), clips)[: self.branch_at - 1]
        if self.z is None and known.posterior is not None:
            steps = self.n_frames - 1 if self.follows else self.n_past - 1
            latents[:steps] = known.latents(latents[:steps])
        return latents

    def _scaled_noise(self, samples: range, clips: range) -> Tensor:
        noise = self.noise.of(samples, clips)
        if self.z is None:
            noise[self.n_past - 1 :] *= self.temperature[samples.start : samples.stop, None, None]
            if self.model.config.variant == "fp":  # whose frame predictor is conditioned by the posterior's mean
                noise[: self.n_past - 1] = 0
        return noise

    def _play(self, known: Conditioning, latents: Tensor, video: Tensor) -> None:
        """Generate the future frames of the video (S', B', T, C, H, W); noise among the latents gives way to its z."""
        model, n_samples = self.model, len(video)
        draws = model.config.variant == "lp" and self.z is None and not self.follows
        if self.branch_at is None:
            start = known.start(latents[: self.n_past - 1], draws)
            self._generate(start, range(self.n_past, self.n_frames), n_samples, latents, video)
            return
        trunk = known.start(latents[: self.n_past - 1, :1], draws)
        frames = range(self.n_past, self.branch_at)
        trunk = self._generate(trunk, frames, 1, latents, video)
        start = trunk.repeated(n_samples, model.config.last_frame_skip)
        self._generate(start, range(self.branch_at, self.n_frames), n_samples, latents, video)

    def _generate(self, start: Start, frames: range, n_samples: int, latents: Tensor, video: Tensor) -> Start:
        """These frames of n_samples, all of them or one that all share; returns where others may go on."""
        if not frames:
            return start
        step, run = future_step(self.model, n_samples, self.batch_statistics, start, cuda_graph=self.cuda_graph)
        for t in frames:
            noise = latents[t - 1, :n_samples].flatten(0, 1)
            frame = step.begin(start, noise) if t == frames.start else run(noise)
            assert step.z is not None
            latents[t - 1] = step.z.unflatten(0, (n_samples, -1))
            video[:, :, t] = frame.unflatten(0, (n_samples, -1))
        return step.look() if frames.stop < self.n_frames else start


def _temperature(given: float | Tensor, n_samples: int, like: Tensor) -> Tensor:
    """(S,), on the device of `like`."""
    if not isinstance(given, Tensor):
        if not 0 <= given < torch.inf:
            raise ValueError(f"temperature must be finite and not negative, got {given:g}")
        return like.new_full((n_samples,), given)
    if tuple(given.shape) != (n_samples,):
        raise ValueError(f"temperature must be a number or have shape {[n_samples]} (S,), got {list(given.shape)}")
    return given.to(like)
